"""Rendered scenes: a small data set with exact ground truth, made by pure functions of a seed and an index.

`scene` says what is in a picture, `render` draws it, `words` puts it into captions, questions and dialogues
and checks texts against it. Nothing here reads a file or a clock, so every picture and text can be made again
anywhere.
"""

from pipelines.scenes.render import render
from pipelines.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    RGB,
    SHAPES,
    SIZES,
    TEXTURES,
    Finish,
    Scene,
    SceneObject,
    Split,
    make_scene,
)
from pipelines.scenes.words import (
    Question,
    Turn,
    class_name,
    conversation,
    dense_caption,
    names_every_object,
    questions,
    short_caption,
    text_dialogue,
)

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD_OUT_PAIRS",
    "RGB",
    "SHAPES",
    "SIZES",
    "TEXTURES",
    "Finish",
    "Question",
    "Scene",
    "SceneObject",
    "Split",
    "Turn",
    "class_name",
    "conversation",
    "dense_caption",
    "make_scene",
    "names_every_object",
    "questions",
    "render",
    "short_caption",
    "text_dialogue",
]
