"""The space: what each form of Hydra's grammar means, and the grid it spans."""

from collections.abc import Mapping
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fanin.errors import ConfigError
from fanin.sweep.grammar import parse
from fanin.sweep.space import Axis, Space


class Groups:
    """A config loader that knows one group."""

    def get_group_options(self, group_name: str, results_filter: Any = None, **_: Any) -> list[str]:
        return {"model": ["cnn", "mlp", "mlp_deep", "softmax"]}.get(group_name, [])


def axis(text: str, **settings: Any) -> Axis:
    (only,) = parse({"key": text}, **settings).axes
    return only


def points(space: Space) -> list[dict[str, str]]:
    return list(space.grid())


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a,b,c", ["a", "b", "c"]),
        ("choice(a)", ["a"]),
        ("choice(1,2.5,true)", ["1", "2.5", "true"]),
        ("1,null", ["1", "null"]),
        ("none,[dropout,batchnorm]", ["none", "[dropout,batchnorm]"]),
        ("{a:1},{a:2}", ["{a:1}", "{a:2}"]),
        ("'a b','c,d'", ["'a b'", "'c,d'"]),
        ("range(1,4)", ["1", "2", "3"]),
        ("range(0,1,0.25)", ["0.0", "0.25", "0.5", "0.75"]),
        ("range(0,0.4,0.1)", ["0.0", "0.1", "0.2", "0.3"]),
        ("range(4,0,-2)", ["4", "2"]),
        ("range(-1,2)", ["-1", "0", "1"]),
        ("float(range(1,3))", ["1.0", "2.0"]),
        ("int(range(1.5,3.5))", ["1", "2"]),
        ("sort(3,1,2)", ["1", "2", "3"]),
        ("sort(range(1,4),reverse=true)", ["3", "2", "1"]),
    ],
)
def test_every_enumerable_form_lists_its_values_as_override_texts(text: str, values: list[str]) -> None:
    assert list(axis(text).values) == values


@pytest.mark.parametrize(
    "text", ["a,b", "choice(1,null,x)", "none,[a,b]", "'a b','c,d'", "1e-5,0.1", "{a:1},{b:[1,2]}"]
)
def test_every_value_parses_back_to_one_value_that_is_not_a_sweep(text: str) -> None:
    text = text.replace("choice(1,null,x)", "1,null,x")
    parser = OverridesParser.create()
    whole = parser.parse_override(f"key={text}")
    back = [parser.parse_override(f"key={value}").value() for value in axis(text).values]
    assert back == [value for value in map(_plain, whole.sweep_iterator())]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return getattr(value, "text", value)


@pytest.mark.parametrize(
    ("text", "kind", "low", "high", "log"),
    [
        ("interval(0,10)", "interval", 0.0, 10.0, False),
        ("tag(log,interval(1e-4,1e-1))", "interval", 1e-4, 1e-1, True),
        ("int(interval(1,9))", "int", 1, 9, False),
        ("int(tag(log,interval(1,64)))", "int", 1, 64, True),
        ("tag(log,int(interval(1,64)))", "int", 1, 64, True),
        ("range(2,7,2)", "range", 2, 6, False),
        ("tag(log,range(1,5))", "range", 1, 4, True),
    ],
)
def test_numbers_keep_their_bounds_and_scale(text: str, kind: str, low: float, high: float, log: bool) -> None:
    got = axis(text)
    assert (got.kind, got.low, got.high, got.log) == (kind, low, high, log)


def test_the_ends_of_an_integer_interval_are_both_included_in_its_size() -> None:
    assert axis("int(interval(1,9))").size == 9
    assert axis("interval(1,9)").size is None


def test_a_yaml_list_is_a_list_of_choices_and_a_scalar_is_fixed() -> None:
    space = parse({"a": [0.1, None, True, [1, 2], "x"], "b": 3, "c": [5], "d": "text"})
    assert [(a.key, list(a.values)) for a in space.axes] == [
        ("a", ["0.1", "null", "true", "[1,2]", "x"]),
        ("c", ["5"]),
    ]
    assert space.fixed == ("b=3", "d=text")


def test_glob_lists_the_matching_choices_of_a_group() -> None:
    space = parse({"model": "glob(mlp*)"}, loader=Groups())  # type: ignore[arg-type]
    assert space.axes[0].values == ("mlp", "mlp_deep")
    assert space.axes[0].text == "mlp,mlp_deep"  # a new file in the group changes the study's question


def test_shuffle_is_decided_by_the_seed_and_keeps_the_values() -> None:
    orders = {axis("shuffle(range(0,20))", seed=seed).values for seed in (0, 0, 1)}
    assert len(orders) == 2
    assert all(sorted(map(int, order)) == list(range(20)) for order in orders)
    assert axis("shuffle(a,b,c,d,e,f)", seed=3).values != tuple("abcdef")
    assert axis("shuffle(a,b,c,d,e,f)", seed=3) == axis("shuffle(a,b,c,d,e,f)", seed=3)


def test_the_command_line_wins_over_params_and_can_fix_an_axis() -> None:
    params = {"initializer": "a,b", "+extra": "1,2", "lr": "0.1,0.2"}
    space = parse(params, overrides=["initializer=c,d,e", "extra=7", "~gone", "epochs=1,2"])
    assert {a.key: a.values for a in space.axes} == {
        "initializer": ("c", "d", "e"),
        "lr": ("0.1", "0.2"),
        "epochs": ("1", "2"),
    }
    assert space.fixed == ("extra=7", "~gone")


def test_prefixes_and_packages_stay_on_the_key_but_not_in_the_name() -> None:
    space = parse({"+a": "1,2", "++b": "1,2", "group@pkg": "x,y"})
    assert [(a.key, a.name) for a in space.axes] == [("+a", "a"), ("++b", "b"), ("group@pkg", "group@pkg")]
    assert points(space)[0] == {"+a": "1", "++b": "1", "group@pkg": "x"}


def test_a_grid_goes_through_all_combinations_with_the_last_axis_fastest() -> None:
    assert points(parse({"a": "1,2", "b": "x,y"})) == [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "y"},
        {"a": "2", "b": "x"},
        {"a": "2", "b": "y"},
    ]


def test_a_space_without_axes_is_one_point() -> None:
    assert points(parse({})) == [{}] and parse(None).size == 1


def test_zipped_axes_walk_in_step() -> None:
    space = parse({"a": "1,2", "c": "7,8", "b": "x,y"}, zipped=[["a", "b"]])
    assert space.size == 4
    assert points(space)[:2] == [{"a": "1", "b": "x", "c": "7"}, {"a": "1", "b": "x", "c": "8"}]
    assert [(a.name, a.kind) for a in space.axes] == [("a|b", "zip"), ("c", "choice")]


def test_explicit_points_are_one_axis_crossed_with_the_others() -> None:
    given: list[Mapping[str, Any]] = [{"optimizer": "sgd", "optimizer.lr": 0.1}, {"optimizer": "adam"}]
    space = parse({"seed": "1,2"}, points=given)
    assert points(space) == [
        {"optimizer": "sgd", "optimizer.lr": "0.1", "seed": "1"},
        {"optimizer": "sgd", "optimizer.lr": "0.1", "seed": "2"},
        {"optimizer": "adam", "seed": "1"},
        {"optimizer": "adam", "seed": "2"},
    ]
    assert space.size == 4


def conditional(**more: Any) -> Space:
    return parse(
        {"optimizer.momentum": [0.8, 0.9], "optimizer": "sgd,momentum,nesterov", "init": "a,b"},
        when={"optimizer.momentum": {"optimizer": ["momentum", "nesterov"]}},
        **more,
    )


def test_a_conditional_axis_exists_only_under_its_parents_values() -> None:
    got = points(conditional())
    assert sum("optimizer.momentum" in point for point in got) == 2 * 2 * 2
    assert sum(point["optimizer"] == "sgd" for point in got) == 2
    assert len({tuple(sorted(point.items())) for point in got}) == len(got) == conditional().size == 10


def test_what_depends_on_an_absent_axis_is_absent_too() -> None:
    space = parse({"a": "1,2", "b": "1,2", "c": "1,2,3"}, when={"c": {"b": 2}, "b": {"a": 2}})
    assert points(space) == [
        {"a": "1"},
        {"a": "2", "b": "1"},
        *({"a": "2", "b": "2", "c": c} for c in "123"),
    ]
    assert space.size == 5


def test_a_condition_on_a_fixed_key_is_settled_at_once() -> None:
    assert {a.key for a in conditional(overrides=["optimizer=sgd"]).axes} == {"init"}
    kept = conditional(overrides=["optimizer=nesterov"])
    assert {a.key for a in kept.axes} == {"init", "optimizer.momentum"} and not kept.conditional


def test_conditions_work_on_keys_of_explicit_points() -> None:
    space = parse(
        {"momentum": [0.8, 0.9]},
        points=[{"optimizer": "sgd"}, {"optimizer": "nesterov", "lr": 0.1}],
        when={"momentum": {"optimizer": "nesterov"}},
    )
    assert space.size == len(points(space)) == 3


def test_the_size_of_a_huge_grid_is_counted_without_listing_it() -> None:
    wide = {f"k{i}": "range(0,10)" for i in range(30)}
    space = parse(wide, when={"k29": {"k0": [1, 2]}})
    assert space.size == 10**28 * (8 + 2 * 10)


def test_values_are_found_however_a_number_is_written() -> None:
    assert axis("0.001,0.01").locate({"key": "1e-3"}) == "0.001"
    assert axis("interval(0,1)").locate({"+key": "1"}) == "1"
    assert axis("int(interval(1,9))").locate({"key": "2.5"}) is None
    assert axis("a,b").locate({"other": "a"}) is None
    zipped = parse({"a": "1,2", "b": "x,y"}, zipped=[["a", "b"]]).axes[0]
    assert zipped.locate({"a": "2", "b": "y"}) == zipped.locate({"a|b": "2|y"}) == "2|y"
    assert zipped.locate({"a": "2", "b": "x"}) is None


def test_the_description_of_an_axis_does_not_depend_on_how_it_was_written() -> None:
    assert axis("choice(1,2,3)").text == axis("range(1,4)").text == axis("1,2,3").text == "1,2,3"
    assert axis("interval(0,1)").text != axis("tag(log,interval(0.1,1))").text


@pytest.mark.parametrize(
    ("params", "settings", "message"),
    [
        ({"lr": "interval(0,1)"}, {}, "lr: .*range"),
        ({"n": "int(interval(1,3))"}, {}, "n: .*grid cannot contain it"),
        (
            {f"k{i}": "range(0,100)" for i in range(4)},
            {},
            "at most 100,000 points .*100 x 100.*'100,000,000'",
        ),
    ],
)
def test_a_grid_that_cannot_be_listed_is_refused_when_it_is_asked_for(
    params: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(params, **settings).grid()


@pytest.mark.parametrize(
    ("params", "settings", "message"),
    [
        ({"a": "choice(1,"}, {}, "a: .* is not in Hydra's override grammar"),
        ({"a": "1,1.0,1"}, {}, "a: the choices must differ.*'1'"),
        ({"a": []}, {}, "hydra.sweeper.params.a: .*at least one"),
        ({"a": {"low": 0, "high": 1}}, {}, "hydra.sweeper.params.a: .*override grammar"),
        ({"a": "interval(2,1)"}, {}, "a: an interval's lower end"),
        ({"a": "tag(log,interval(0,1))"}, {}, "a: a logarithmic interval must lie above 0"),
        ({"a": "tag(log,choice(1,2))"}, {}, "a: tag.log, ....*needs numbers in order"),
        ({"a": "tag(lgo,interval(1,2))"}, {}, "a: tag: 'lgo' is not one of: log; did you mean 'log'"),
        ({"a": "tag(log,range(1,9,2))"}, {}, "a: a logarithmic range"),
        ({"a": "range(3,3)"}, {}, "a: a range must not be empty"),
        ({"a": "range(1,3,0)"}, {}, "a: a range's step must not be 0"),
        ({"model": "glob(mlp*)"}, {}, "model: glob.. needs the config groups"),
        ({"model": "glob(x*)"}, {"loader": Groups()}, "model: at least one choice must match"),
        ({}, {"overrides": ["hydra.job.chdir=true,false"]}, "hydra.job.chdir: .*cannot be swept"),
        ({"a": "1,2", "b": "1,2,3"}, {"zipped": [["a", "b"]]}, "study.zip: .*equally many values"),
        ({"a": "1,2", "b": "interval(0,1)"}, {"zipped": [["a", "b"]]}, "study.zip: only lists and ranges"),
        ({"aa": "1,2"}, {"zipped": [["aa", "ab"]]}, "study.zip: 'ab' is not one of: aa"),
        ({"a": "1,2"}, {"zipped": [["a"]]}, "study.zip: at least two"),
        ({"a": "1,2"}, {"points": [{"a": 1}]}, "a: a key can be set in one place only"),
        ({"a": 1}, {"points": [{"a": 1}]}, "a: a key can be set in one place only"),
        ({}, {"points": [{"a": "1,2"}]}, "study.points: a: a point has one value"),
        ({}, {"points": [{"a": 1}, {"a": 1}]}, "study.points: .*differ"),
        ({}, {"points": [{}]}, "study.points: a point maps keys to values"),
        ({"a": "1,2"}, {"when": {"b": {"a": 1}}}, "study.when: 'b' is not one of: a"),
        ({"a": "1,2", "b": "1,2"}, {"when": {"b": {"c": 1}}}, "study.when.b: 'c' is not one of: a"),
        (
            {"a": "10,20", "b": "1,2"},
            {"when": {"b": {"a": 11}}},
            "study.when.b.a: '11' is not one of: 10, 20",
        ),
        ({"a": "1,2", "b": "1,2"}, {"when": {"b": "a"}}, "study.when.b: maps another key"),
        ({"a": "1,2", "b": "1,2"}, {"when": {"b": {"a": 1}, "a": {"b": 1}}}, "study.when: .*circle"),
        ({"a": "1,2"}, {"when": {"a": {"a": 1}}}, "study.when.a: an axis cannot depend on itself"),
    ],
)
def test_what_makes_no_sense_is_refused_with_key_and_rule(
    params: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(params, **settings)
