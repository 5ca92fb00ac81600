import pytest

from mixattn.evals.arena.platform.catalog import read_catalog


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ("[[model]]\nname = 'a'\nscripted = 'x'\n", "fewer than two"),
        ("[[model]]\nname = 'a'\n[[model]]\nname = 'b'\n", "needs one of base_url, engine and scripted"),
        ("[[model]]\nname = 'a'\nscripted = 'x'\n" * 2, "names model 'a' twice"),
        ("[[model]\n", "not valid TOML"),
        (
            "[[model]]\nname = 'a'\nbase_url = 'http://x'\nkey_env = 'NO_SUCH_KEY'\n" * 2,
            "takes its key from NO_SUCH_KEY",
        ),
        ("[[model]]\nname = 'a'\nscripted = 'x'\ncolour = 1\n" * 2, "unknown field 'colour'"),
        ("[[model]]\nname = 'a'\nengine = '/nowhere'\n" * 2, "engine = '/nowhere', which does not exist"),
        ("[[model]]\nname = 'a'\nscripted = 5\n" * 2, "scripted = 5, not a str"),
        ("[[model]]\nname = 'a'\nscripted = 'x'\ndelay_s = 'slow'\n" * 2, "delay_s = 'slow'"),
        ("[[model]]\nname = 'a'\nscripted = 'x'\naliases = 'b'\n" * 2, "aliases that are not a list"),
        ("[[model]]\nname = 'a'\nbase_url = 'ftp://x'\n" * 2, "neither http:// nor https://"),
        ("model = 5\n", "fewer than two"),
        ("model = [5, 6]\n", "is a int, not a table"),
    ],
)
def test_a_wrong_models_file_is_refused(tmp_path, models, said):
    file = tmp_path / "models.toml"
    file.write_text(models)
    with pytest.raises(ValueError) as why:
        read_catalog(file)
    assert said in str(why.value)


def test_a_checkpoint_a_script_and_a_server_are_models(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "k")
    file = tmp_path / "models.toml"
    file.write_text(
        f"[[model]]\nname = 'a'\nengine = '{tmp_path}'\n"
        "[[model]]\nname = 'b'\nscripted = 'x'\nbroken = true\n"
        "[[model]]\nname = 'c'\nbase_url = 'http://x/v1'\nkey_env = 'SOME_KEY'\nweight = 2\n"
    )
    engine, script, server = read_catalog(file)
    assert engine.engine == str(tmp_path)
    assert script.broken
    assert (server.model, server.key, server.weight) == ("c", "k", 2)
