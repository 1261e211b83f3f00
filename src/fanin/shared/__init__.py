"""A study's state in PostgreSQL, so that its sweep can be gone on with on another machine.

The project's folder `.fanin/<study>/` stays what a sweep works on: workers write their spools there, the search
its journal, and nobody who trains or plans ever waits for a database. Of that folder PostgreSQL has a copy of all
that a sweep is resumed from:

    study.json            the question's identity
    journal.log           the search: Optuna's records, in their order
    spool.jsonl           the study's own record
    runs/<key>/run.json, spool.jsonl, shipped.json
                          each run: its specification, every record up to its end, and what MLflow has of it

Not copied are checkpoints and artifacts. A sweep that begins takes hold of the study (hold.py), fetches what is
missing or newer (copies.py), and from then on appends to the copy what it has appended to its files (keeper.py).
An append-only file cut off anywhere is one that a killed sweep might have left, so whatever PostgreSQL had got when
a machine died is a state that fanin goes on from; no second kind of resuming had to be invented.

Three orders make it safe. A run's records are in PostgreSQL before they are in MLflow: what another machine does
not know of a run, MLflow does not know either, so no point comes twice when the run is done again. The journal is
copied in the same transaction as the runs, and read after them: no run is known whose trial is not. And every
write asks for the number of the hold it is made under: a machine that was cut off while another one took over
writes nothing any more, to PostgreSQL or, by the first order, to MLflow.

Why not Optuna's RDBStorage as the search's storage: each of the dozen records of a trial would be a transaction
for which planning waits, an outage would stop the search, and a trial that is half drawn when its coordinator
dies cannot be taken back. A copy of the journal costs nothing while planning, and cut anywhere it is repaired as
after a kill (journal.py). For optuna-dashboard, which reads RDBStorage only, the trials are also written there
(sweep/mirror.py); nothing is ever read from it.
"""
