"""Tags of OCR variants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits.core.errors import SpecError
from fewbits.spec.ocr_schemes import OcrMethod, OcrNetwork, OcrScheme, ocr_scheme_tag, parse_ocr_scheme

SCHEMES = st.one_of(
    st.none(),
    st.builds(
        OcrScheme,
        st.sampled_from(OcrMethod),
        st.sampled_from([tuple(OcrNetwork), (OcrNetwork.DETECTION,), (OcrNetwork.RECOGNITION,)]),
    ),
)


@given(scheme=SCHEMES, upper=st.booleans())
def test_a_written_tag_reads_back_in_any_case(scheme: OcrScheme | None, upper: bool) -> None:
    tag = ocr_scheme_tag(scheme)
    assert parse_ocr_scheme(tag.upper() if upper else tag.lower()) == scheme


@pytest.mark.parametrize(
    ("tag", "method", "networks"),
    [
        ("INT8-dynamic", OcrMethod.DYNAMIC, (OcrNetwork.DETECTION, OcrNetwork.RECOGNITION)),
        ("int8-STATIC", OcrMethod.STATIC, (OcrNetwork.DETECTION, OcrNetwork.RECOGNITION)),
        ("INT8-static-det", OcrMethod.STATIC, (OcrNetwork.DETECTION,)),
        ("INT8-static-rec", OcrMethod.STATIC, (OcrNetwork.RECOGNITION,)),
    ],
)
def test_tags_mean_what_they_say(tag: str, method: OcrMethod, networks: tuple[OcrNetwork, ...]) -> None:
    assert parse_ocr_scheme(tag) == OcrScheme(method, networks)


@pytest.mark.parametrize(
    "tag", ["", "INT8", "INT8-static-cls", "INT4-static", "INT8-static-det-rec", "INT8_static", " FP32", "W8A8"]
)
def test_other_tags_are_refused_by_name(tag: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_ocr_scheme(tag, "--engines")
    assert refused.value.problems[0].path == "--engines"
    assert repr(tag) in str(refused.value)
    assert "INT8-static" in refused.value.problems[0].hint
