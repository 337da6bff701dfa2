"""f32, f16 and bf16 heads: sizes, and each part of the epilogue."""

from case import Case
from cases.builders import bias_of, case, gaussian
from draws import Random


@case
def f32_plain(r: Random) -> Case:
    return gaussian(r, "F32", 5, 67, 193, 5, description="f32, odd sizes")


@case
def f16_plain(r: Random) -> Case:
    return gaussian(r, "F16", 5, 101, 193, 8, description="f16, odd sizes")


@case
def bf16_plain(r: Random) -> Case:
    return gaussian(r, "BF16", 5, 96, 300, 8, description="bf16")


@case
def bf16_long_rows(r: Random) -> Case:
    return gaussian(r, "BF16", 3, 1031, 24, 3, description="bf16, a hidden size past one tile, with a tail")


@case
def f32_large_logits(r: Random) -> Case:
    text = "logits of several thousand: exp overflows unless the largest is taken out first"
    return gaussian(r, "F32", 4, 61, 130, 5, 400.0, description=text)


@case
def bf16_bias(r: Random) -> Case:
    return gaussian(r, "BF16", 5, 80, 160, 6, description="bias", bias=bias_of(r, 160, 0.5))


@case
def bf16_softcap(r: Random) -> Case:
    text = "softcap 30 on logits that reach 100"
    return gaussian(r, "BF16", 6, 72, 170, 3, 3.0, description=text, softcap="30")


@case
def f16_logit_scale(r: Random) -> Case:
    return gaussian(r, "F16", 6, 77, 190, 6, 0.5, description="logit_scale 0.0625", logit_scale="0.0625")


@case
def f32_negative_logit_scale(r: Random) -> Case:
    text = "a negative logit_scale turns the order round; it comes after the softcap"
    return gaussian(r, "F32", 5, 40, 140, 6, description=text, logit_scale="-2.5", softcap="4")


@case
def f32_bias_softcap_scale(r: Random) -> Case:
    text = "bias, then softcap, then logit_scale"
    more = {"description": text, "softcap": "20", "logit_scale": "0.625"}
    return gaussian(r, "F32", 6, 53, 131, 4, 2.0, bias=bias_of(r, 131, 5.0), **more)


@case
def bf16_bias_softcap_scale(r: Random) -> Case:
    text = "bias, then softcap, then logit_scale"
    more = {"description": text, "softcap": "30", "logit_scale": "0.0625"}
    return gaussian(r, "BF16", 4, 90, 175, 4, 2.0, bias=bias_of(r, 175, 5.0), **more)
