"""YAML -> overrides -> objects, and what a config may not do."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sgm.config import ConfigError, instantiate_from_config, load_config
from sgm.diffusion.denoiser import Denoiser, VScalingWithEDMcNoise
from sgm.diffusion.discretization import EDMDiscretization
from sgm.engine import build_engine
from sgm.errors import UserError
from sgm.versions import VERSIONS

EDM = "sgm.modules.diffusionmodules.discretizer.EDMDiscretization"
CONFIG = f"""
rho: 5.0
model:
  target: {EDM}
  params:
    sigma_max: 80.0
    rho: ${{rho}}
list:
- target: {EDM}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def test_reads_and_resolves_interpolations(config: Path) -> None:
    assert load_config(config)["model"] == {"target": EDM, "params": {"sigma_max": 80.0, "rho": 5.0}}


def test_overrides_lie_over_the_file_before_interpolation(config: Path) -> None:
    params = load_config(config, ["rho=3.5", "model.params.sigma_max=700", "model.params.sigma_min=1e-3"])["model"][
        "params"
    ]
    assert params == {"sigma_max": 700, "rho": 3.5, "sigma_min": 0.001}
    assert load_config(config)["model"]["params"]["sigma_max"] == 80.0
    with pytest.raises(ConfigError, match=r"^model\.params=\[\] does not fit "):  # rather than "is not valid YAML"
        load_config(config, ["model.params=[]"])


def test_a_config_may_lie_over_another(config: Path) -> None:
    over = config.with_name("over.yaml")
    over.write_text("base: config.yaml\nrho: 6.0\nmodel: {params: {sigma_max: 90.0}}\n", encoding="utf-8")
    assert load_config(over)["model"] == {"target": EDM, "params": {"sigma_max": 90.0, "rho": 6.0}}
    assert load_config(over, ["rho=2"])["model"]["params"]["rho"] == 2
    assert "base" not in load_config(over)
    over.write_text("base: nowhere.yaml\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no config at .*nowhere\.yaml"):
        load_config(over)


def test_builds_what_it_names(config: Path) -> None:
    built = instantiate_from_config(load_config(config)["model"])
    assert isinstance(built, EDMDiscretization)
    assert (built.sigma_min, built.sigma_max, built.rho) == (0.002, 80.0, 5.0)


def test_extra_parameters_lie_over_the_configs_own() -> None:
    assert instantiate_from_config({"target": EDM, "params": {"sigma_max": 80.0}}, sigma_max=9.0).sigma_max == 9.0


def test_takes_omegaconf_nodes_with_interpolations_in_them() -> None:
    scaling = "sgm.modules.diffusionmodules.denoiser_scaling.VScalingWithEDMcNoise"
    tree = {
        "scaling": scaling,
        "denoiser": {
            "target": "sgm.modules.diffusionmodules.denoiser.Denoiser",
            "params": {"scaling_config": {"target": "${scaling}"}},
        },
    }
    built = instantiate_from_config(OmegaConf.create(tree).denoiser)
    assert isinstance(built, Denoiser)
    assert type(built.scaling) is VScalingWithEDMcNoise


def test_identity_takes_any_parameters() -> None:
    assert instantiate_from_config({"target": "torch.nn.Identity", "params": {"disc_start": 1}})(3) == 3


def test_unknown_target_is_named_with_its_place_and_what_is_near(config: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config, [f"model.params.inner.target={EDM.replace('EDMDisc', 'EDDisc')}"])
    message = str(caught.value)
    assert str(config) in message
    assert "model.params.inner.target is 'sgm.modules.diffusionmodules.discretizer.EDDiscretization'" in message
    assert f"Near it: {EDM}" in message


def test_unknown_target_inside_a_list_is_found(config: Path) -> None:
    config.write_text(CONFIG.replace(f"- target: {EDM}", f"- target: {EDM}\n- target: x.Zzyzx"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"list\.1\.target is 'x\.Zzyzx'.*Known: .*EDMDiscretization"):
        load_config(config)


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "subprocess.Popen", "sgm.config.load_config", "torch.load"]
)
def test_runs_nothing_but_what_is_in_the_table(config: Path, tmp_path: Path, target: str) -> None:
    trace = tmp_path / "trace"
    params = {"command": f"touch {trace}", "args": ["touch", str(trace)]}
    with pytest.raises(ConfigError, match="not a known target"):
        instantiate_from_config({"target": target, "params": params})
    with pytest.raises(ConfigError, match="not a known target"):
        load_config(config, [f"model.target={target}"])
    assert not trace.exists()


def test_yaml_tags_build_no_objects(config: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    config.write_text(f"model: !!python/object/apply:os.system ['touch {trace}']\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config(config)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target": EDM, "params": {"sigma_maximum": 3}}, f"{EDM}: .*unexpected keyword argument 'sigma_maximum'"),
        ({"target": "sgm.modules.diffusionmodules.guiders.VanillaCFG"}, "VanillaCFG: .*missing .*'scale'"),
        ({"target": EDM, "params": [1, 2]}, r"params must be a mapping; got \[1, 2\]"),
        ({"params": {}}, "needs the key 'target'; got the keys params"),
        ({}, r"needs the key 'target'; got the keys \(none\)"),
        ({"target": 3}, "target is '3', which is not a known target"),
        ({"target": ["os", "system"]}, "not a known target"),
    ],
)
def test_what_cannot_be_built_is_said(given: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        instantiate_from_config(given)


def test_wrong_parameters_deep_inside_name_the_innermost_target() -> None:
    config = {
        "target": "sgm.modules.diffusionmodules.sampling.EulerEDMSampler",
        "params": {"discretization_config": {"target": EDM, "params": {"rhoo": 7}}},
    }
    with pytest.raises(ConfigError, match=f"^{EDM}: .*'rhoo'"):
        instantiate_from_config(config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [1, 2", "is not valid YAML"),
        ("a: b: c", "is not valid YAML"),
        ("- 1\n- 2\n", "is not a config: a config is a mapping"),
        ("", "is not a config: .* key 'model'"),
        ("models: {}", "is not a config: .* key 'model'"),
        ("model: ${nowhere}\n", "cannot be read as a config: .*nowhere"),
        ("\x00\x01", "cannot be read|not valid YAML"),
    ],
)
def test_broken_files_are_one_sentence_with_the_files_name(config: Path, text: str, said: str) -> None:
    config.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(config)
    assert str(config) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text(config: Path) -> None:
    config.write_bytes(b"\xff\xfe\x80model")
    with pytest.raises(ConfigError, match=config.name):
        load_config(config)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no config at .*nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read as a config"):
        load_config(tmp_path)


@pytest.mark.parametrize("override", ["model.params=[", "model.params={a: 1", "rho=${nowhere}"])
def test_bad_overrides_are_one_sentence(config: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_config(config, [override])
    assert "\n" not in str(caught.value)


def test_is_an_error_for_the_user() -> None:
    assert issubclass(ConfigError, UserError)


def test_references_reach_other_values_and_nothing_else(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    config.write_text(
        "model: {a: '${b.c}', d: ['${..a}', '${b.e[1]}', 'x${.0}y'], e: '${.a}', f: '${g.c}'}\n"
        "b: {c: 1, e: [4, 5]}\ng: ${b}\n",
        encoding="utf-8",
    )
    assert load_config(config)["model"] == {"a": 1, "d": [1, 5, "x1y"], "e": 1, "f": 1}
    for secret in (
        "${oc.env:SECRET}",
        "a ${oc.env:SECRET}",
        "${${way}:SECRET}",
        "${b.${oc.env:SECRET}}",
        "${oc.decode:1}",
    ):
        config.write_text(f"model: {{a: '{secret}', way: oc.env}}\n", encoding="utf-8")
        with pytest.raises(
            ConfigError, match=r"more than a reference to another value.*resolvers.*are not run"
        ) as caught:
            load_config(config)
        assert "hunter2" not in str(caught.value)
        config.write_text("model: {a: 1}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match="more than a reference"):
            load_config(config, [f"model.a={secret}"])


def doubling(value: str) -> str:
    """Forty values, each of which names the one before twice."""
    return "a0: xx\n" + "".join(f"a{i + 1}: {value.format(i=i)}\n" for i in range(40)) + "model: {a: '${a40}'}\n"


ALIASES = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    "text",
    [
        f"model: {'x' * (256 << 10)}",
        "#" * (1 << 20) + "\nmodel: {}",
        ALIASES + "model: {}",
        "a: &a " + "x" * 10**5 + "\nmodel: [" + "*a, " * 900 + "]",
        doubling("['${{a{i}}}', '${{a{i}}}']"),
        doubling("'${{a{i}}}${{a{i}}}'"),
        "model: ${b}\nb: ${model}",
        "model: ${b.x}\nb: ${model.x}",
        "model: {b: '${model}'}",
        "model: " + "[" * 900 + "]" * 900,
        "model: " + "${" * 300,
        "model: &a [*a]",
    ],
    ids=range(12),
)
def test_a_small_file_makes_no_large_work(config: Path, text: str) -> None:
    config.write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(ConfigError, match=config.name) as caught:
        load_config(config)
    assert time.process_time() - start < 3
    assert "https:" not in str(caught.value)  # advice for programmers


def test_only_regular_files_are_read(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    special = config.with_name("special.yaml")
    if hasattr(os, "mkfifo"):
        os.mkfifo(special)
        with pytest.raises(ConfigError, match=r"special\.yaml cannot be read as a config: it is a folder or a device"):
            load_config(special)
        config.write_text("base: special.yaml\nmodel: {}\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"special\.yaml cannot be read as a config"):
            load_config(config)
    for name in ("x" * 300, "with\0zero", ""):
        with pytest.raises(UserError):
            load_config(name)
    monkeypatch.setenv("HOME" if os.name != "nt" else "USERPROFILE", str(config.parent))
    config.write_text(CONFIG, encoding="utf-8-sig")
    assert load_config(f"~/{config.name}")["model"]["target"] == EDM


TINY = VERSIONS["svd_tiny"].config_path
PARAMS = "model.params."
NETWORK = f"{PARAMS}network_config.params."
DECODER = f"{PARAMS}first_stage_config.params.decoder_config.params."


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=null", "with the keys 'target' and 'params'; got None"),
        ("model=3", "with the keys 'target' and 'params'; got 3"),
        (f"model.target={EDM}", "EDMDiscretization"),
        ("model.target=torch.nn.Identity", "is torch.nn.Identity, which is no DiffusionEngine"),
        ("model.params=3", "params must be a mapping; got 3"),
        (f"{PARAMS}conditioner_config.params.emb_models=null", "GeneralConditioner: .*not iterable"),
        (
            f"{PARAMS}conditioner_config.params.emb_models=[{{target: torch.nn.Identity}}]",
            "the key 'input_key' is missing",
        ),
        (f"{PARAMS}first_stage_config=null", "got None"),
        (f"{PARAMS}first_stage_config.target=torch.nn.Identity", "has no attribute 'decoder'"),
        (f"{PARAMS}scale_factor=abc", "could not convert string to float: 'abc'"),
        (f"{PARAMS}scale_factor=.nan", "scale_factor must be a number above 0; got nan"),
        (f"{NETWORK}merge_strategy=foo", "merge_strategy 'foo' is unknown; use one of learned,"),
        (f"{NETWORK}in_channels=-1", "negative dimension"),
        (f"{NETWORK}in_channels=0", "has a weight of shape .96, 0, 3, 3., without values"),
        (f"{NETWORK}in_channels=1000000000", "more than 20,000 parts or 100 billion values"),
        (f"{NETWORK}model_channels=1000000000", "VideoUNet: "),
        (f"{NETWORK}context_dim=100000000000000000000", "VideoUNet: "),
        (f"{NETWORK}num_res_blocks=10000000", "more than 20,000 parts or 100 billion values"),
        (f"{NETWORK}num_head_channels=0", "by zero"),
        (f"{NETWORK}transformer_depth=x", "VideoUNet: "),
        (f"{DECODER}ch_mult=[]", "VideoDecoder: "),
    ],
)
def test_a_config_of_no_model_is_one_sentence_with_its_name(override: str, said: str) -> None:
    start = time.process_time()
    with pytest.raises(ConfigError, match=rf"svd_tiny\.yaml.*{said}") as caught:
        build_engine(TINY, (override,))
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 10


def test_three_hundred_damaged_configs(config: Path) -> None:
    """Bytes changed, lines lost or doubled, values swapped: a model or a sentence, nothing else."""
    chance = random.Random(7)
    # The part of a config in which most can go wrong, small enough to be built often.
    model = {"target": "sgm.models.diffusion.DiffusionEngine", "params": load_config(TINY)["model"]["params"]}
    model["params"]["network_config"]["params"] |= {"channel_mult": [1], "attention_resolutions": []}
    model["params"]["conditioner_config"]["params"]["emb_models"] = []
    decoder = model["params"]["first_stage_config"]["params"]["decoder_config"]["params"]
    decoder |= {"ch_mult": [1], "num_res_blocks": 1}
    del model["params"]["sampler_config"]
    whole = OmegaConf.to_yaml(OmegaConf.create({"model": model}))
    odd = [
        "null",
        "-1",
        "0",
        "1e400",
        ".nan",
        "[]",
        "{}",
        "${model}",
        "${x}",
        "*a",
        "!!python/name:os.system",
        "\t",
        "'",
        "1" * 30,
    ]
    ends = {"built": 0, "refused": 0}
    for _ in range(300):
        lines = whole.splitlines()
        i = chance.randrange(len(lines))
        kind = chance.choice([0, 0, 0, 1, 2, 3, 3])
        if kind == 0:
            lines[i] = f"{lines[i].partition(':')[0]}: {chance.choice(odd)}"
        elif kind == 1:
            del lines[i]
        elif kind == 2:
            lines[i], lines[i - 1] = lines[i - 1], lines[i]
        data = bytearray("\n".join(lines).encode())
        if kind == 3:
            data[chance.randrange(len(data))] = chance.randrange(256)
        config.write_bytes(data)
        try:
            build_engine(config)
            ends["built"] += 1
        except UserError:
            ends["refused"] += 1
    assert min(ends.values()) > 20
