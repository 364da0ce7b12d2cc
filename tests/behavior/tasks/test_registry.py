import pytest

from mechprobe.behavior.tasks import load_task, register_task, task_names
from mechprobe.behavior.tasks.registry import _REGISTRY
from mechprobe.errors import SpecError


def test_a_task_of_the_users_own_and_a_name_twice():
    def load(source="organism"):
        return load_task("refusal", source, n=2)

    try:
        register_task("mine", load)
        assert "mine" in task_names()
        assert len(load_task("mine")) == 2
        with pytest.raises(SpecError, match="a task named 'mine' exists already"):
            register_task("mine", load)
        with pytest.raises(SpecError, match="mine: no option 'n'; see"):
            load_task("mine", n=2)
    finally:
        _REGISTRY.pop("mine", None)


@pytest.mark.parametrize("wrong", [TypeError("3 + 'x'"), ValueError("no luck")])
def test_a_defect_of_a_loader_is_not_shown_as_a_mistake_of_the_users(monkeypatch, wrong):
    def load(source: "Unheard" = "organism", *, n: int = 2, share=0.5):
        raise wrong

    monkeypatch.setitem(_REGISTRY, "mine", load)
    with pytest.raises(type(wrong), match=str(wrong)[:1]):
        load_task("mine", n=3)
    with pytest.raises(SpecError, match="mine: option 'share' is inf: input should be a finite"):
        load_task("mine", share=float("inf"))
