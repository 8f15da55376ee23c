"""Questions about scenes and emoji images, with their answers: short strings in lower case.

The first wording of each kind is the canonical one, for evaluation.
"""

import random
from collections import Counter
from dataclasses import dataclass

from .icons import World
from .palette import COLORS
from .phrases import BETWEEN, NUMBERS, PLURAL_FORMS, describe, place_name, plural, with_article
from .scenes import RELATIONS, Scene, SceneObject, is_held_out_color, is_held_out_relation, relation


WORDINGS = {
    "name": ("What is this?", "What does the picture show?", "Name this thing."),
    "which": ("What is {color}?", "Which thing is {color}?"),
    "color": ("What color {is_the} {name}?", "Which color {has_the} {name}?"),
    "background": ("What color is the background?", "Name the background color."),
    "count": ("How many things are there?", "Count the things."),
    "count_kind": ("How many {names} are there?", "Count the {names}."),
    "place": ("Where {is_the} {name}?", "In which part of the picture {is_the} {name}?"),
    "relation": ("Where {is_the} {name}, relative to the {other}?", "On which side of the {other} {is_the} {name}?"),
    "describe": ("Describe the picture.", "What do you see?"),
    "yes_no_name": ("Is there {a}?", "Do you see {a}?"),
    "yes_no_color": ("{Is_the} {name} {color}?",),
    "yes_no_background": ("Is the background {color}?",),
    "yes_no_relation": ("{Is_the} {name} {between} the {other}?",),
    "yes_no_count": ("Are there {number} {names}?",),
}
KEYWORDS = {
    "name": "this",
    "which": "which {color}",
    "color": "color {name}",
    "background": "background",
    "count": "count",
    "count_kind": "many {names}",
    "place": "where {name}",
    "relation": "{name} relative {other}",
    "yes_no_name": "there {noun}",
    "yes_no_color": "is {name} {color}",
    "yes_no_background": "is background {color}",
    "yes_no_relation": "is {name} {between} {other}",
    "yes_no_count": "are {number} {names}",
}
"""The same questions in keywords, which end with what decides the answer; without `describe`."""
YES_NO = tuple(kind for kind in WORDINGS if kind.startswith("yes_no"))
KINDS = tuple(WORDINGS)


@dataclass(frozen=True)
class Question:
    """A question with its answer."""

    kind: str
    text: str
    answer: str


class QuestionSampler:
    """Sampler of the questions that have one clear answer for a scene.

    Args:
        world: with the names of things.
        canonical: whether all questions have the first wording.
    """

    def __init__(self, world: World, canonical: bool = False):
        self.world, self.canonical = world, canonical
        self.names = [thing.name for thing in world.things]

    def kinds(self, scene: Scene) -> list[str]:
        """Lists the kinds of questions that have one clear answer for a scene."""
        kinds = ["background", "count", "count_kind", "describe", "yes_no_name", "yes_no_background"]
        if self._repeated(scene):
            kinds.append("yes_no_count")
        if len(scene.objects) == 1:
            kinds.append("name")
        elif self._named_by_color(scene):
            kinds.append("which")
        if singles := self._singles(scene):
            kinds += ["color", "yes_no_color"]
            if any(place_name(obj) for obj in singles):
                kinds.append("place")
        if self._related(scene):
            kinds += ["relation", "yes_no_relation"]
        return kinds

    def sample(
        self, rng: random.Random, scene: Scene, kind: str, truth: bool | None = None, keywords: bool = False
    ) -> Question:
        """Samples a question of a kind that [`kinds`] lists.

        Args:
            rng: generator of everything random.
            scene: the subject.
            kind: of the question.
            truth: whether the answer to a yes/no question is yes; random when None.
            keywords: whether the question is one of `KEYWORDS` instead of a sentence.
        """
        truth = rng.random() < 0.5 if truth is None else truth
        words, answer = getattr(self, f"_{kind}")(rng, scene, truth)
        wordings = (KEYWORDS[kind],) if keywords else WORDINGS[kind]
        template = wordings[0] if self.canonical else rng.choice(wordings)
        return Question(kind, template.format(**words), answer)

    def sample_emoji(self, rng: random.Random, name: str) -> Question:
        """Samples a question for the name of an emoji."""
        template = WORDINGS["name"][0] if self.canonical else rng.choice(WORDINGS["name"])
        return Question("name", template, name)

    def _subject(self, thing_name: str) -> dict[str, str]:
        many = thing_name in PLURAL_FORMS
        return {
            "name": thing_name,
            "is_the": "are the" if many else "is the",
            "Is_the": "Are the" if many else "Is the",
            "has_the": "have the" if many else "has the",
        }

    def _singles(self, scene: Scene) -> list[SceneObject]:
        """Lists the objects whose thing occurs once."""
        counts = Counter(obj.thing for obj in scene.objects)
        return [obj for obj in scene.objects if counts[obj.thing] == 1]

    def _named_by_color(self, scene: Scene) -> list[SceneObject]:
        """Lists the objects whose colour occurs once."""
        counts = Counter(obj.color for obj in scene.objects)
        return [obj for obj in scene.objects if counts[obj.color] == 1]

    def _repeated(self, scene: Scene) -> list[tuple[int, int]]:
        """Lists (thing, number) of things that occur more than once."""
        return [pair for pair in Counter(obj.thing for obj in scene.objects).items() if pair[1] > 1]

    def _related(self, scene: Scene) -> list[tuple[SceneObject, SceneObject, str]]:
        """Lists (first, second, relation) of objects whose things occur once and whose relation is clear and not held
        out."""
        singles = self._singles(scene)
        pairs = ((a, b, relation(a, b)) for a in singles for b in singles if a is not b)
        return [(a, b, seen) for a, b, seen in pairs if seen and not is_held_out_relation(a.thing, seen)]

    def _name(self, rng, scene, truth):
        return {}, self.names[scene.objects[0].thing]

    def _which(self, rng, scene, truth):
        obj = rng.choice(self._named_by_color(scene))
        return {"color": obj.color}, self.names[obj.thing]

    def _color(self, rng, scene, truth):
        obj = rng.choice(self._singles(scene))
        return self._subject(self.names[obj.thing]), obj.color

    def _background(self, rng, scene, truth):
        return {}, scene.background

    def _count(self, rng, scene, truth):
        return {}, str(len(scene.objects))

    def _count_kind(self, rng, scene, truth):
        shown = [obj.thing for obj in scene.objects]
        absent = rng.random() < 0.15
        thing = rng.choice([t for t in range(len(self.names)) if t not in shown] if absent else sorted(set(shown)))
        return {"names": plural(self.names[thing])}, str(shown.count(thing))

    def _place(self, rng, scene, truth):
        obj = rng.choice([obj for obj in self._singles(scene) if place_name(obj)])
        return self._subject(self.names[obj.thing]), place_name(obj)

    def _relation(self, rng, scene, truth):
        first, second, seen = rng.choice(self._related(scene))
        return self._subject(self.names[first.thing]) | {"other": self.names[second.thing]}, seen

    def _describe(self, rng, scene, truth):
        return {}, describe(self.world, scene)

    def _yes_no_name(self, rng, scene, truth):
        shown = sorted({obj.thing for obj in scene.objects})
        thing = rng.choice(shown if truth else [t for t in range(len(self.names)) if t not in shown])
        return {"a": with_article(self.names[thing]), "noun": self.names[thing]}, _yes(truth)

    def _yes_no_color(self, rng, scene, truth):
        obj = rng.choice(self._singles(scene))
        # Held-out pairs do not occur as wrong ones either.
        others = [color for color in COLORS if color != obj.color and not is_held_out_color(obj.thing, color)]
        # A colour of something else in half of the cases: otherwise it would do to see whether the colour occurs at
        # all.
        near = [c for c in (*(other.color for other in scene.objects), scene.background) if c in others]
        wrong = rng.choice(near if near and rng.random() < 0.5 else others)
        return self._subject(self.names[obj.thing]) | {"color": obj.color if truth else wrong}, _yes(truth)

    def _yes_no_background(self, rng, scene, truth):
        others = [color for color in COLORS if color != scene.background]
        near = [obj.color for obj in scene.objects]
        wrong = rng.choice(near if rng.random() < 0.5 else others)
        return {"color": scene.background if truth else wrong}, _yes(truth)

    def _yes_no_relation(self, rng, scene, truth):
        first, second, seen = rng.choice(self._related(scene))
        wrong = [r for r in RELATIONS if r != seen and not is_held_out_relation(first.thing, r)]
        between = BETWEEN[seen if truth else rng.choice(wrong)]
        words = {"between": between, "other": self.names[second.thing]}
        return self._subject(self.names[first.thing]) | words, _yes(truth)

    def _yes_no_count(self, rng, scene, truth):
        thing, number = rng.choice(self._repeated(scene))
        shown = number if truth else rng.choice([n for n in (2, 3, 4) if n != number])
        return {"number": NUMBERS[shown], "names": plural(self.names[thing])}, _yes(truth)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def scene_as_text(world: World, scene: Scene) -> str:
    """Formats a scene as text, with colour and place of every object: the input of a language model without images."""
    parts = []
    for obj in scene.objects:
        x, y = (round(c / 8) for c in obj.center)
        parts.append(f"{obj.color} {world.things[obj.thing].name} at {x} {y}")
    return f"{scene.background} background: " + ", ".join(parts)
