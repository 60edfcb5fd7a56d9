"""The representation study as one self-contained page (pipelines.page)."""

from __future__ import annotations

from collections.abc import Sequence

from harmon.evaluation.encoders import MarEncoder
from harmon.evaluation.labelled import png
from harmon.evaluation.reconstruction import Closeness, Pixels, Reconstructed, mean_closeness
from harmon.evaluation.scenes import Score
from harmon.evaluation.study import Studied, Study
from pipelines.charts import Measure, measures
from pipelines.page import (
    Headline,
    Markup,
    Page,
    Picture,
    Remark,
    Section,
    count,
    element,
    facts,
    fold,
    gallery,
    headlines,
    note,
    paragraph,
    percent,
    table,
    thumbnail,
)

SIDE = 192  # of a picture on the page, at most
PAPER = (("SigLIP-B/16", 95.9), ("VQGAN", 18.2), ("VAE", 18.5), ("MAR-B", 83.1))
"""Top-5 accuracy of linear probes on ImageNet, percent (paper, Table 6, column Acc)."""

NOTHING_REDRAWN = "Nothing was drawn again: there is no MAR among the encoders, or no picture was asked for."
TITLES = {
    "autoencoder": "Through the autoencoder alone: the bound",
    "visible": "Reading 1: every position decoded from its own features",
    "left_out": "Reading 2: every position drawn from the features of the others",
    "flat": "The mean colour: the floor",
}


def study_page(study: Study) -> Page:
    """The page of a whole study."""
    first = study.encoders[0].probed
    return Page(
        title="What encoders know of a picture",
        kicker=f"Harmon · representation study on {study.labelled.name}",
        summary="How much of a label a linear layer can read from the features of frozen encoders, where in a picture "
        "it reads it, and what MAR’s decoder makes of MAR’s features. "
        f"{count(first.trained_on)} pictures to train the heads, {count(first.top1.n)} held back, {first.classes} "
        "classes.",
        sections=[_probes(study), _looks(study), _reconstructions(study), _how(study)],
        footer="Every number on this page was measured by the command that wrote it; study.json holds them all.",
    )


def _probes(study: Study) -> Section:
    rows = [
        Measure(_short(one), one.probed.top1.share, one.probed.top1.chance or 0, one.probed.top1.n)
        for one in study.encoders
    ]
    shuffled = [
        Measure(_short(one), one.probed.shuffled.share, one.probed.shuffled.chance or 0, one.probed.shuffled.n)
        for one in study.encoders
    ]
    numbers = [
        [_named(one), one.probed.width, _share(one.probed.top1), _share(one.probed.top5), _share(one.probed.shuffled)]
        for one in study.encoders
    ]
    content = [headlines([_headline(one) for one in study.encoders]), *_stand_ins(study.encoders)]
    content += [
        measures("Top-1 accuracy on pictures held back", rows),
        measures("The same heads, trained on shuffled labels: chance is what is expected", shuffled),
        table(["encoder", "numbers a picture", "top-1", "top-5", "top-1, labels shuffled"], numbers),
    ]
    if any(one.encoder.stand_in for one in study.encoders):
        content.append(paragraph("* a stand-in, as said above."))
    if study.encoders[0].probed.classes <= 5:
        content.append(note(f"With {study.encoders[0].probed.classes} classes top-5 says nothing."))
    if unreadable := study.encoders[0].probed.unreadable:
        content.append(note(f"{count(unreadable)} pictures could not be decoded and are left out.", state="bad"))
    paper = ", ".join(f"{name} {value}" for name, value in PAPER)
    content.append(paragraph(f"In the paper (Table 6, top-5 on ImageNet, percent): {paper}."))
    return Section("Linear probes", content, "One linear layer on frozen features; chance is named beside each.")


def _looks(study: Study) -> Section:
    lead = (
        "Grad-CAM++ of the probe’s logit of the true class: blue is nothing, red the strongest place of each picture. "
        "The same pictures in the same order for every encoder."
    )
    mapped = [(one, one.maps) for one in study.encoders if one.maps]
    if not mapped:
        return Section("Where the probe looks", [note("The heads read buffers, which lie nowhere in a picture.")], lead)
    content: list[Markup] = []
    pointed = [(one, maps.pointing) for one, maps in mapped if maps.pointing]
    if pointed:
        rows = [Measure(_short(one), score.share, score.chance or 0, score.n) for one, score in pointed]
        content.append(measures("Maps whose strongest position lies on the object", rows))
        content.append(paragraph("Chance is the object’s share of the positions. The probe was never told a place."))
    content += [element("h3", "The pictures"), _gallery(mapped[0][1].originals, [one.label for one in study.shown])]
    for one, maps in mapped:
        content += [element("h3", _named(one)), _gallery(maps.overlays, [picture.label for picture in study.shown])]
    return Section("Where the probe looks", content, lead)


def _reconstructions(study: Study) -> Section:
    lead = (
        "MAR sees the whole picture; its decoder, which was only ever trained to fill in hidden positions, draws every "
        "token anew. Closeness is to the original: PSNR in dB, SSIM."
    )
    drawn = [one for one in study.encoders if one.reconstructed]
    content: list[Markup] = [] if drawn else [note(NOTHING_REDRAWN)]
    labels = [picture.label for picture in study.shown] + list(study.extra)
    for one in drawn:
        means = mean_closeness(one.reconstructed)
        rows = [[_title(name), _decibels(means[name]), f"{means[name].ssim:.3f}"] for name in _in_order(means)]
        content += [element("h3", _named(one)), table(["picture", "PSNR, dB", "SSIM"], rows)]
        content.append(_gallery([picture.original for picture in one.reconstructed], labels, "The pictures"))
        for name in _in_order(means):
            if name != "flat":
                content.append(_made(one.reconstructed, name, labels))
    return Section("Zero-shot reconstruction", content, lead)


def _how(study: Study) -> Section:
    probed, settings = study.encoders[0].probed, study.config
    departures = [
        "One centre crop a picture in place of MAE’s random crops and flips: features are extracted once.",
        f"{count(probed.steps)} train steps in batches of {count(min(probed.trained_on, settings.probe.batch))}; "
        "MAE’s 90 epochs on ImageNet are 7,020 in batches of 16,384. The rate at the peak is the same.",
        "The paper names no recipe for its probes, no pooling and no layer for its maps; these are ours.",
        "There is no VQGAN among the encoders.",
    ]
    if any(isinstance(one.encoder, MarEncoder) for one in study.encoders):
        departures.insert(
            0,
            "MAR’s buffers hold the null embedding (fake_latent), so no label reaches the encoder. But MAR was trained "
            "with class labels in its buffers, so its weights have seen labels, as those of an encoder trained on "
            "pictures alone have not: a probe on the data it was trained on is flattered by that.",
        )
    encoders = [
        [_named(one), one.encoder.px, one.encoder.key[:12], one.encoder.stand_in or "no"] for one in study.encoders
    ]
    named = [("data", study.labelled.name), ("pooling", settings.pooling)]
    named += [(f"probe: {name}", str(value)) for name, value in settings.probe.model_dump().items()]
    named += [(f"reconstruction: {name}", str(value)) for name, value in settings.reconstruction.model_dump().items()]
    return Section(
        "How it was measured",
        [
            element("ul", *(element("li", one) for one in departures)),
            table(["encoder", "px", "weights", "stand-in"], encoders),
            fold("Settings", facts(named)),
        ],
    )


def _headline(one: Studied) -> Headline:
    score = one.probed.top1
    verdict = f"chance {percent(score.chance or 0, 1)}"
    return Headline(percent(score.share, 1), f"{_named(one)}: top-1", verdict)


def _stand_ins(encoders: Sequence[Studied]) -> list[Markup]:
    return [
        note(f"{one.encoder.name} is a stand-in: {one.encoder.stand_in}.") for one in encoders if one.encoder.stand_in
    ]


def _named(one: Studied) -> str:
    return f"{one.encoder.name} (stand-in)" if one.encoder.stand_in else one.encoder.name


def _short(one: Studied) -> str:
    """The name without what a chart's margin cannot hold; the sign of a stand-in stays."""
    name = one.encoder.name if len(one.encoder.name) <= 22 else f"{one.encoder.name[:21]}…"
    return f"{name} *" if one.encoder.stand_in else name


def _share(score: Score) -> str:
    return f"{percent(score.share, 1)} (chance {percent(score.chance or 0, 1)})"


def _title(name: str) -> str:
    reading, comma, rest = name.partition(",")
    return f"{TITLES[reading]}{comma}{rest}"


def _in_order(means: dict[str, Closeness]) -> list[str]:
    places = list(TITLES)
    return sorted(means, key=lambda name: (places.index(name.partition(",")[0]), name))


def _decibels(one: Closeness) -> str:
    return f"{one.psnr:.1f}"


def _gallery(pictures: Sequence[Pixels], labels: Sequence[str], title: str = "") -> Markup:
    shown = gallery([_picture(picture, label) for picture, label in zip(pictures, labels, strict=True)])
    return element("div", element("h4", title), shown) if title else shown


def _made(pictures: Sequence[Reconstructed], name: str, labels: Sequence[str]) -> Markup:
    shown = [
        _picture(one.made[name], label, f"{_decibels(one.closeness[name])} dB, {one.closeness[name].ssim:.2f}")
        for one, label in zip(pictures, labels, strict=True)
    ]
    return element("div", element("h4", _title(name)), gallery(shown))


def _picture(pixels: Pixels, label: str, remark: str = "") -> Picture:
    return thumbnail(png(pixels), label, *([Remark(remark)] if remark else []), side=SIDE)
