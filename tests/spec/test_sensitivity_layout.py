"""Laws of the names: what differs has another folder, what is the same has the same, and a folder stays below its root."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from fewbits.core.files import safe_name
from fewbits.records.sensitivity import (
    AutoQuantSettings,
    CoverageMode,
    DatasetSettings,
    GranularitySettings,
    ModelSettings,
    OutputSettings,
    PairSettings,
    SensitivityMethod,
    SensitivitySpec,
)
from fewbits.spec.sensitivity_layout import PUBLISHED_DATASET, manifest_name, publish_folder, run_name, scheme_name


@dataclass(frozen=True)
class Case:
    model: str = "qwen3_vl_4b_instruct"
    pair: str = "wint4_afp16"
    weight: str = "int4"
    activation: str = "fp16"
    granularity: str = "default"
    dataset: str = PUBLISHED_DATASET
    size: str = "small"
    cap: int | None = None
    method: SensitivityMethod = SensitivityMethod.GRADIENT
    bits: float = 8.0
    coverage: CoverageMode = CoverageMode.LM_ONLY
    fraction: float = 1.0
    head: bool = False
    score_size: int = 128
    disabled: tuple[str, ...] = ()
    dtype: str = "auto"

    def spec(self) -> SensitivitySpec:
        return SensitivitySpec(
            model=ModelSettings(name=self.model, path="m", dtype=self.dtype),
            dataset=DatasetSettings(
                name=self.dataset, size=self.size, captions_path="c", size_to_max_samples={}, max_calib_samples=self.cap
            ),
            quant_pair=PairSettings(
                name=self.pair,
                weight=self.weight,
                activation=self.activation,
                format_name="F",
                coverage_mode=self.coverage,
                coverage_fraction=self.fraction,
            ),
            quant_granularity=GranularitySettings(name=self.granularity),
            autoquant=AutoQuantSettings(
                method=self.method,
                effective_bits=self.bits,
                include_output_head=self.head,
                score_size=self.score_size,
                disabled_layers=self.disabled,
            ),
            output_layout=OutputSettings(mode="publish", root_dir="models"),
        )


WORDS = ("a", "b", "_", "__", "lm", "autoquant", "lm_", "_lm_", "_autoquant_", "max-5", "bits-4.0", "settings-", "data-", "small")
names = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join).filter(lambda name: safe_name(name) == name)
cases = st.builds(
    Case,
    model=names,
    pair=names,
    weight=st.sampled_from(["int4", "int8"]),
    activation=st.sampled_from(["int8", "fp16"]),
    granularity=st.sampled_from(["default", "w_group64"]),
    dataset=st.sampled_from([PUBLISHED_DATASET, "x", "x_max-5", "x_lm_y"]),
    size=names,
    cap=st.sampled_from([None, 5, 16]),
    method=st.sampled_from(SensitivityMethod),
    bits=st.sampled_from([8.0, 4.0, 4.000001, 6]),
    coverage=st.sampled_from(CoverageMode),
    fraction=st.sampled_from([1.0, 0.5, 0.25]),
    head=st.booleans(),
    score_size=st.sampled_from([128, 64]),
    disabled=st.sampled_from([(), ("*a*",)]),
    dtype=st.sampled_from(["auto", "float32"]),
)


@given(cases, cases)
def test_different_settings_never_share_a_folder(one: Case, other: Case) -> None:
    assume(one != other)
    assert publish_folder(one.spec()) != publish_folder(other.spec())


@given(st.data(), cases)
def test_a_single_difference_is_enough(data: st.DataObject, one: Case) -> None:
    field = data.draw(st.sampled_from(list(Case.__dataclass_fields__)))
    other = Case(**{**vars(one), field: getattr(data.draw(cases), field)})
    assert (publish_folder(one.spec()) == publish_folder(other.spec())) == (one == other)


@given(cases)
def test_the_same_settings_have_the_same_folder_below_the_root(case: Case) -> None:
    folder = publish_folder(case.spec())
    assert folder == publish_folder(msgspec.structs.replace(case.spec()))
    assert len(folder.parts) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}", part) for part in folder.parts)
    assert not folder.is_absolute()


def test_default_settings_have_the_short_name() -> None:
    spec = Case().spec()
    expected = PurePosixPath("weight-int4-act-fp16/default/qwen3_vl_4b_instruct_autoquant_wint4_afp16_lm_small")
    assert publish_folder(spec) == expected
    assert scheme_name(spec) == "wint4_afp16_autoquant_lm"
    assert manifest_name(scheme_name(spec)) == "wint4_afp16_autoquant_lm_quant_manifest.json"


def test_other_settings_are_readable_in_the_name() -> None:
    name = run_name(Case(cap=5, method=SensitivityMethod.KL_DIV, bits=6, coverage=CoverageMode.FULL, fraction=0.5).spec())
    assert name.endswith("_lm_small_max-5_method-kl_div_bits-6.0_coverage-full_fraction-0.5")


def test_what_has_no_word_goes_in_as_a_digest() -> None:
    assert re.search(r"_lm_small_settings-[0-9a-f]{8}$", run_name(Case(score_size=16).spec()))


def test_names_stay_short_enough_for_file_systems() -> None:
    name = run_name(Case(model="m" * 80, pair="p" * 80, size="s" * 80).spec())
    assert len(name) < 100
    assert name != run_name(Case(model="m" * 80, pair="p" * 80, size="s" * 79).spec())


def test_a_pair_may_name_its_folders_and_scheme() -> None:
    spec = Case().spec()
    pair = msgspec.structs.replace(spec.quant_pair, scheme_name="old", publish_pair_dir="p", publish_run_dir="r")
    spec = msgspec.structs.replace(spec, quant_pair=pair)
    assert publish_folder(spec) == PurePosixPath("p/default/r")
    assert scheme_name(spec) == "old"
