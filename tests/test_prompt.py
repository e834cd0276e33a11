"""What is asked, to the letter, which changes make it another question, and of whom it can be asked."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from src.data.spec import Shown
from src.errors import ConfigError
from src.labeling.prompt import render
from src.labeling.protocol import Provider
from src.labeling.teacher import Price, Teacher, Terms
from src.task import TaskSpec

CONF = Path(__file__).parents[1] / "conf"
SHOWN = Shown(size=224, sharpen=True, jpeg_quality=90)
NAMES = ["apple", "mushroom", "orange", "pear", "sweet_pepper"]
SYSTEM = "You are a precise image labeler. Respond with strict JSON only."
USER = """Classify this 224x224 photo into one of:
["apple","mushroom","orange","pear","sweet_pepper"].
If fruit vs vegetable is ambiguous, prefer the fruit.
Return JSON only: {"label":"<one>","confidence":0-1,"why":"<=12 words"}."""


def read(path: str) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(CONF / path), resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def cifar5(**changes: Any) -> TaskSpec:
    return TaskSpec(**(read("task/cifar5.yaml") | changes))


def teacher(file: str = "gemini_flash", **changes: Any) -> Teacher:
    values = {"model": "m"} | {k: v for k, v in read(f"teacher/{file}.yaml").items() if v != "???"} | changes
    return Teacher(**(values | {"price": Price(**values["price"]), "terms": Terms(**values["terms"])}))


def digest(task: TaskSpec | None = None, **shown: Any) -> str:
    return render(task or cifar5(), replace(SHOWN, **shown)).hash


# The text


def test_the_published_prompt_is_sent_to_the_letter() -> None:
    prompt = render(cifar5(), SHOWN)
    assert prompt.system == SYSTEM
    assert prompt.user == USER


def test_the_data_config_shows_images_as_the_recipe_does() -> None:
    assert Shown(**read("data/folder.yaml")["shown"]) == SHOWN


def test_the_schema_asks_for_strings_numbers_and_an_enum_alone() -> None:
    schema = render(cifar5(), SHOWN).schema
    assert schema == {
        "type": "object",
        "properties": {
            "label": {"type": "string", "enum": NAMES}, "confidence": {"type": "number"}, "why": {"type": "string"},
        },
        "required": ["label", "confidence", "why"],
    }


def test_every_task_renders_and_lists_its_classes() -> None:
    files = sorted(path.name for path in (CONF / "task").glob("*.yaml"))
    assert {"cifar5.yaml", "digits.yaml"} <= set(files)
    for file in files:
        task = TaskSpec(**read(f"task/{file}"))
        pictures = "size" in task.user_prompt  # a text has none
        prompt = render(task, SHOWN if pictures else None)
        assert all(f'"{name}"' in prompt.user for name in task.names) and ("224" in prompt.user) == pictures


def test_names_and_definitions_are_not_escaped() -> None:
    listing = "{% for name, meaning in definitions.items() %} {{ name }}: {{ meaning }}{% endfor %}"
    task = cifar5(classes={"crème_&_co": "it's <sweet>", "b": "x"}, aliases={}, confusion={},
                  user_prompt="{{ classes | tojson }} {{ size }}" + listing)
    assert render(task, SHOWN).user == '["crème_&_co","b"] 224 crème_&_co: it\'s <sweet> b: x'


# The hash


@pytest.mark.parametrize("change", [
    {"system_prompt": SYSTEM + " "},
    {"user_prompt": "Which of {{ classes | tojson }}?"},
    {"classes": dict.fromkeys(NAMES[:4], ""), "aliases": {}, "confusion": {}},
    {"classes": dict.fromkeys(reversed(NAMES), ""), "confusion": {}},
    {"user_prompt": "Which of {{ classes | tojson }}? {{ definitions }}"},
])  # fmt: skip
def test_another_question_has_another_hash(change: dict[str, Any]) -> None:
    assert digest(cifar5(**change)) != digest()


def test_a_definition_counts_where_the_prompt_shows_it() -> None:
    sharper = dict.fromkeys(NAMES, "sharper")
    assert digest(cifar5(classes=sharper)) == digest()
    shown = {"user_prompt": "Which of {{ definitions }}?"}
    assert digest(cifar5(classes=sharper, **shown)) != digest(cifar5(**shown))


def test_the_schema_counts_where_the_prompt_does_not_list_the_classes() -> None:
    blind = {"user_prompt": "What is it?", "confusion": {}, "aliases": {}}
    assert digest(cifar5(**blind)) != digest(cifar5(classes={"apple": "", "pear": ""}, **blind))


@pytest.mark.parametrize("change", [{"size": 225}, {"sharpen": False}, {"jpeg_quality": 91}])
def test_how_an_item_is_shown_counts(change: dict[str, Any]) -> None:
    # A prompt that does not name the size, so that only what is shown differs.
    task = cifar5(user_prompt="Which of {{ classes | tojson }}?")
    assert digest(task, **change) != digest(task)


@pytest.mark.parametrize("change", [
    {"version": 2}, {"name": "other"}, {"metric": "f1_macro"}, {"confusion": {}}, {"aliases": {}},
    {"aliases": {"toadstool": "mushroom"}},
])  # fmt: skip
def test_the_same_question_keeps_its_hash(change: dict[str, Any]) -> None:
    assert digest(cifar5(**change)) == digest()


def test_a_longer_timeout_or_token_limit_asks_nothing_again() -> None:
    # Prompt and schema know no teacher, and these settings do not stand in the annotator's name either.
    assert teacher(timeout_s=5, max_tokens=7, image_tokens=9, json_mode="none").annotator == teacher().annotator
    assert teacher(key_env="OTHER", routing={}, price=read("teacher/openai_compatible.yaml")["price"]).annotator == \
        teacher().annotator


@pytest.mark.parametrize("change", [
    {"model": "google/gemini-2.5-pro"}, {"base_url": "https://other.ai/api/v1"}, {"temperature": 0.7},
    {"sampling": {"top_p": 0.9}}, {"sampling": {}}, {"base_url": "https://openrouter.ai:8443/api/v1"},
])  # fmt: skip
def test_another_annotator_has_another_name(change: dict[str, Any]) -> None:
    assert teacher(**change).annotator != teacher().annotator
    name = 'openrouter.ai/api/v1/google/gemini-2.5-flash?reasoning={"effort":"none"}&temperature=0.0'
    assert teacher().annotator == name


# Mistakes


@pytest.mark.parametrize("key", ["system_prompt", "user_prompt"])
@pytest.mark.parametrize(("template", "said"), [
    ("Which of {{ klasses }}?", "'klasses' is undefined"),
    ("Which of {{ classes | tojso }}?", "tojso"),
    ("{% for name in classes %}", "endfor"),
    ("{{ classes", "end of"),
    ("{{ classes[99] }}", "99"),
    ("{{ size + 'px' }}", "unsupported operand"),
    ("{{ size // 0 }}", "zero"),
    ("{{ size | tojson(3) }}", "argument"),
])  # fmt: skip
def test_a_mistake_in_a_template_names_the_key(key: str, template: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"task.{key}={template!r} is not allowed")) as caught:
        render(cifar5(**{key: template}), SHOWN)
    assert said in str(caught.value) and "classes, definitions and size" in str(caught.value)


@pytest.mark.parametrize(("change", "said"), [
    ({"base_url": "localhost:11434"}, "teacher.base_url='localhost:11434'"),
    ({"base_url": "http://localhost:99999/v1"}, "teacher.base_url='http://localhost:99999/v1'"),
    ({"base_url": "http://localhost:abc/v1"}, "teacher.base_url='http://localhost:abc/v1'"),
    ({"base_url": "http://[::1/v1"}, "teacher.base_url='http://[::1/v1'"),
    ({"base_url": "ftp://host/v1"}, "teacher.base_url='ftp://host/v1'"),
    ({"base_url": "http:///v1"}, "teacher.base_url='http:///v1'"),
    ({"base_url": ""}, "teacher.base_url=''"),
    ({"base_url": "http://me:sk-secret@host/v1"}, "teacher.base_url='http://***@host'"),
    ({"base_url": "http://me:sk-secret@host:99999/v1"}, "teacher.base_url='http://***@host:99999/v1'"),
    ({"model": ""}, "teacher.model=''"),
    ({"json_mode": "xml"}, "teacher.json_mode='xml'"),
    ({"max_tokens": 0}, "teacher.max_tokens=0"),
    ({"timeout_s": -1.0}, "teacher.timeout_s=-1.0"),
])
def test_a_teacher_that_cannot_be(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        teacher(**change)
    assert "sk-secret" not in str(caught.value)


# Routing and terms

OPENROUTER = ["gemini_flash", "openrouter_distillable"]


@pytest.mark.parametrize(("routing", "said"), [
    ({"provider": {"data_colection": "deny"}}, "teacher.routing.provider.data_colection='deny' is not allowed: one of "
                                               "order, only, ignore"),
    ({"provider": {"data_collection": "no"}}, "teacher.routing.provider.data_collection='no' is not allowed: Input "
                                              "should be 'allow' or 'deny'"),
    ({"provider": {"zdr": "true"}}, "teacher.routing.provider.zdr='true' is not allowed: Input should be a valid bool"),
    ({"provider": {"only": "google-vertex"}}, "teacher.routing.provider.only='google-vertex'"),
    ({"provider": None}, "teacher.routing.provider=None"),
    ({"providr": {"zdr": True}}, "teacher.routing.providr={'zdr': True} is not allowed: one of provider, usage, user"),
    ({"models": ["a/b"]}, "fields that change the answers belong into teacher.sampling"),
])
@pytest.mark.parametrize("base_url", ["https://openrouter.ai/api/v1", "https://EU.OpenRouter.ai/api/v1"])
def test_what_openrouter_would_pass_over_is_refused(base_url: str, routing: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        teacher(base_url=base_url, routing=routing)


def test_routing_does_not_hide_among_the_sampling_settings() -> None:
    with pytest.raises(ConfigError, match=r"teacher.sampling.provider=.* it belongs into teacher.routing"):
        teacher(sampling={"provider": {"data_collection": "deny"}})


@pytest.mark.parametrize("base_url", ["http://localhost:11434/v1", "https://notopenrouter.ai/v1"])
def test_another_endpoint_knows_its_own_fields(base_url: str) -> None:
    other = teacher(base_url=base_url, routing={"provider": {"data_colection": "deny"}, "priority": 1})
    assert not other.by_openrouter
    warned, = other.warnings
    assert "teacher.routing.provider (data_colection) is a request to OpenRouter" in warned and "another end" in warned


@pytest.mark.parametrize("file", OPENROUTER)
def test_openrouters_teachers_ask_for_what_protects(file: str) -> None:
    """And the stand-in, which is strict, takes the same fields."""
    asked = teacher(file).asked_of_providers
    assert teacher(file).by_openrouter and asked["require_parameters"] is True and asked["data_collection"] == "deny"
    assert Provider.model_validate(asked).model_dump(exclude_none=True) == asked


def test_the_distillable_teacher_enforces_it_and_pays_no_more_than_its_price() -> None:
    found = teacher("openrouter_distillable")
    assert found.asked_of_providers["enforce_distillable_text"] is True and found.terms.training == "yes"
    assert found.asked_of_providers["max_price"] == {"prompt": found.price.input_usd, "completion":
                                                     found.price.output_usd}


@pytest.mark.parametrize(("written", "read"), [("yes", "yes"), ("no", "no"), ("unknown", "unknown"), (True, "yes"),
                                               (False, "no"), ("True", "yes"), ("False", "no")])
def test_yaml_may_take_yes_and_no_for_true_and_false(written: Any, read: str) -> None:
    assert Terms(written, "a page", "2026-11-22").training == read


@pytest.mark.parametrize(("training", "date", "said"), [
    ("perhaps", "2026-11-22", "teacher.terms.training='perhaps' is not allowed: yes, no or unknown"),
    ("yes", "last week", "teacher.terms.date='last week' is not allowed: the day of reading"),
])
def test_terms_are_read_on_a_day_and_say_something(training: str, date: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Terms(training, "a page", date)


@pytest.mark.parametrize(("training", "warned"), [("no", 1), ("yes", 0), ("unknown", 0)])
def test_forbidden_training_is_warned_of_and_no_error(training: str, warned: int) -> None:
    found = teacher(terms={"training": training, "source": "their page", "date": "2026-11-22"})
    assert len(found.warnings) == warned
    for text in found.warnings:
        assert "google/gemini-2.5-flash" in text and "2026-11-22 (their page)" in text
