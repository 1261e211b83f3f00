"""What is refused where a study's state is in PostgreSQL: addresses, other questions, studies of one name."""

import sys
from contextlib import closing
from dataclasses import replace

import pytest
from databases import lacking
from plans import make_study
from shared_state import held, machines

from fanin.errors import ConfigError
from fanin.folders import Folder
from fanin.shared.exchange import Exchange
from fanin.shared.late import Latecomer
from fanin.sweep.compose import Composer
from fanin.sweep.folder import StudyFolder
from fanin.sweep.launch import project_loader
from fanin.sweep.sharing import Local, Shared, open_state

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking() or "all is there")


def refusal(address, path, *, uri="sqlite:///mlflow.db"):
    """What a sweep says whose study's state is to be at `address`."""
    study = make_study({"a": "1,2"})
    base = replace(study.base, state=address, config={"tracking": {"uri": uri}})
    with pytest.raises(ConfigError) as raised, open_state(replace(study, base=base), path):
        pass
    message = str(raised.value)
    assert message.startswith("tracking.state: ") and "\n" not in message and "hid" not in message, message
    return message


def test_bad_input_is_one_message_before_anything_is_written_and_never_the_password(server, tmp_path, monkeypatch):
    path, port = tmp_path / ".fanin" / "study", server.cluster.port
    for address, words in {
        "mysql://me:hidden@h/optuna": "must be an address like postgresql://optuna@host:5432/optuna, got 'mysql'",
        "hidden": "must be an address like postgresql://optuna@host:5432/optuna, got 'something else'",
        "postgresql://me:hid den@h/optuna": "must be an address like postgresql://optuna@host:5432/optuna; in it, %20",
        server.address(password="hidden"): f"127.0.0.1:{port}/optuna: FATAL:  password authentication failed for user",
        server.address(database="none"): 'database "none" does not exist',
        server.address(port=9): "127.0.0.1:9/optuna: Connection refused; without it nobody knows what is done",
        server.address().replace("127.0.0.1", "nowhere.invalid"): "failed to resolve host 'nowhere.invalid'",
        server.address("reader"): "use the role that owns the database",
    }.items():
        assert words in refusal(address, path), refusal(address, path)
    assert "choose tracking=server" in refusal(server.address(), path, uri="none")
    server.ask("create table fanin_version (version integer); create table fanin_piece (study text)")
    server.ask("insert into fanin_version values (99)")
    assert "another version of fanin (state 99, this one writes 1)" in refusal(server.address(), path)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'fanin[server]'" in refusal(server.address(), path)
    assert not path.exists()


def test_a_configuration_keeps_no_address_and_a_run_no_password(project, monkeypatch):
    monkeypatch.setenv("FANIN_STATE_URI", "postgresql://optuna:hidden@h/optuna")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h")
    with project_loader() as (loader, found):
        one = Composer(loader, config_name="config", fixed=[*found, "tracking=server"]).compose(["epochs=3"])
    assert one.state == "postgresql://optuna:hidden@h/optuna"
    assert one.config["tracking"]["state"] is None and "hidden" not in repr(one)


def test_another_question_is_refused_elsewhere_as_it_is_here(server, tmp_path):
    one, two, *_ = machines(tmp_path)
    with held(server, one) as (exchange, _):
        exchange.send()
    other = {"space": {}, "replicates": 2, "metric": ["val/loss"]}
    with held(server, two) as (exchange, folder):
        with pytest.raises(ConfigError, match=r"holds another question:\n  replicates: 1 -> 2\n  --extend keeps"):
            folder.admit(other, extend=False)
        folder.admit(other, extend=True)
        exchange.send()
    with held(server, one) as (_, folder):
        folder.admit(other, extend=False)


def test_studies_of_one_name_are_not_mixed(server, tmp_path):
    one, two, ended, _ = machines(tmp_path)
    with held(server, one) as (exchange, _):
        exchange.send([ended])
    with closing(StudyFolder(two / ".fanin" / "initializers")) as folder:  # never shared
        folder.admit({"replicates": 1}, extend=False)
    exchange = Exchange(server.address(), two / ".fanin" / "initializers")
    exchange.take()
    with pytest.raises(ConfigError, match="two studies are called 'initializers'"):
        Shared(exchange).settle(new=False)
    with pytest.raises(ConfigError, match="is kept in PostgreSQL at 127.0.0.1"):
        Local(one / ".fanin" / "initializers").settle(new=False)
    aside = Shared(exchange).settle(new=True)
    exchange.close()
    assert aside and server.ask("select study from fanin_study order by 1") == ["initializers", aside.name]
    with held(server, two) as (exchange, _):  # begun anew
        exchange.send()
    exchange = Exchange(server.address(), one / ".fanin" / "initializers")
    exchange.take()
    aside = Shared(exchange).settle(new=False)  # what the first machine has is of the study before
    exchange.close()
    assert aside and (aside / "runs" / ended.path.name).exists()


def test_a_study_is_put_aside_under_one_name_here_and_there_also_where_the_name_is_taken(server, tmp_path, monkeypatch):
    monkeypatch.setattr("fanin.sweep.folder.stamp", lambda: "then")
    put = {"one": "initializers.until-then", "two": "initializers.until-then-2", "three": "initializers.until-then-3"}
    for machine, name in put.items():
        path = tmp_path / machine / ".fanin" / "initializers"
        with held(server, tmp_path / machine) as (exchange, _):
            exchange.send()
        exchange = Exchange(server.address(), path)
        exchange.take()
        assert Shared(exchange).settle(new=True) == path.with_name(name)
        exchange.close()
        assert not path.exists() and (path.with_name(name) / "study.json").exists()
    assert server.ask("select study from fanin_study order by 1") == ["initializers", *put.values()]
    with held(server, tmp_path / "one") as (exchange, _):
        exchange.send()
    (tmp_path / "one" / ".fanin" / "initializers.until-then-2-2").mkdir()  # of a study that was never shared
    exchange = Exchange(server.address(), tmp_path / "one" / ".fanin" / "initializers")
    exchange.take()
    assert Shared(exchange).settle(new=True).name == "initializers.until-then-2-3"
    exchange.close()
    with closing(Latecomer(server.address())) as late:  # each may still bring what it has of its own
        for machine, name in put.items():
            late.secure(Folder(tmp_path / machine / ".fanin" / name))
