"""The server's page: draw a picture and watch the canvas fill in; ask about a picture."""

from pathlib import Path

from harmon.serving.served import Served
from pipelines.page import Markup, Page, Section, element, join

_HERE = Path(__file__).parent


def studio(served: Served) -> str:
    """The page as one HTML document; its script talks to the API of the server that it came from."""
    return Page(
        title="Draw and ask",
        kicker=served.settings.name,
        summary="One model that draws what you describe, and answers what you ask about a picture.",
        sections=[
            Section("Draw", [_style(), _key(), _drawing(served)], "The canvas fills in as the model draws its tokens."),
            Section("Ask", [_asking()], "About a picture of yours, or the one that was drawn."),
        ],
        footer="A picture's PNG says how to draw it again: harmon generate --again.",
        script=(_HERE / "studio.js").read_text(encoding="utf-8"),
        asks_server=True,
    ).render()


def _style() -> Markup:
    return element("style", Markup((_HERE / "studio.css").read_text(encoding="utf-8")))


def _key() -> Markup:
    return _field("API key, if this server wants one", _input("key", type="password", autocomplete="off"))


def _drawing(served: Served) -> Markup:
    size, how = f"{served.trained.px}x{served.trained.px}", served.sampling
    numbers = join(
        _field("Size", _input("size", value=size)),
        _field("AR steps", _input("steps", type="number", min=1, max=served.settings.ar_steps, value=how.ar_steps)),
        _field("Guidance", _input("guidance", type="number", min=1, step="any", value=how.cfg)),
        _field("Seed", _input("seed", type="number", placeholder="any")),
    )
    form = element(
        "form",
        _field("Prompt", element("textarea", id="prompt", rows=2, required="", maxlength=served.settings.text_chars)),
        element("div", numbers, class_="fields"),
        _buttons(element("button", "Draw", type="submit", id="start"), _button("stop", "Stop", hidden="")),
        id="drawing",
        data_model=served.settings.name,
        data_frames=served.settings.frames,
    )
    canvas = element(
        "figure",
        Markup('<img id="canvas" alt="The canvas, still empty">'),
        element("progress", id="progress", max=1, value=0, aria_label="AR steps done"),
        element("figcaption", "Nothing is drawn yet.", id="told", aria_live="polite"),
        class_="canvas",
    )
    return element("div", form, canvas, class_="halves")


def _asking() -> Markup:
    picture = element(
        "figure",
        Markup('<img id="shown" alt="The picture in question" hidden>'),
        _field("Picture", _input("file", type="file", accept="image/png,image/jpeg,image/webp")),
        _buttons(_button("take", "Ask about the drawn one", disabled=""), _button("anew", "Begin anew")),
        class_="canvas",
    )
    chat = element(
        "div",
        element("ol", id="said", aria_live="polite"),
        element(
            "form",
            _field("Question", _input("question", required="", autocomplete="off")),
            _buttons(element("button", "Ask", type="submit", id="send")),
            id="asking",
        ),
    )
    return element("div", chat, picture, class_="halves")


def _field(label: str, control: Markup) -> Markup:
    return element("label", element("span", label), control)


def _input(name: str, **attributes: object) -> Markup:
    return Markup(str(element("input", id=name, **attributes)).removesuffix("</input>"))


def _buttons(*buttons: Markup) -> Markup:
    return element("div", *buttons, class_="buttons")


def _button(name: str, text: str, **attributes: object) -> Markup:
    return element("button", text, type="button", id=name, **attributes)
