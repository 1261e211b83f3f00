-- Run once, by the superuser, on an empty cluster: three databases, their owners, and a role that only reads.
-- The passwords come from the environment; psql 15 or newer.
\set ON_ERROR_STOP on
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv optuna_password OPTUNA_DB_PASSWORD
\getenv reader_password READER_DB_PASSWORD

create role mlflow login password :'mlflow_password';
create role optuna login password :'optuna_password';
create role reader login password :'reader_password';
alter role reader set default_transaction_read_only = on;
alter role reader set statement_timeout = '5min';

create database mlflow owner mlflow;
create database mlflow_auth owner mlflow; -- accounts and password hashes: not for the reader
create database optuna owner optuna;
revoke connect, temporary on database mlflow, mlflow_auth, optuna, postgres from public;
grant connect on database mlflow, optuna to reader;

\connect mlflow
alter default privileges for role mlflow in schema public grant select on tables to reader;
\connect optuna
alter default privileges for role optuna in schema public grant select on tables to reader;
