"""Shapeset-3x2: one or two gray shapes of three kinds on a gray ground (Glorot and Bengio 2010, section 2.1).

An image of 32 x 32 pixels shows one or two objects, each a triangle, a parallelogram or an ellipse of random form,
size, rotation, place and gray. Which they are is its class, whichever of two lies in front: three kinds alone, three
pairs of two kinds, three pairs of one. "The second object does not overlap with the first by more than fifty percent of
its area, to avoid hiding it entirely": here at least half of the first one's pixels stay in sight.

How the paper's images were drawn is taken from the program that its first author published (Shapeset, polygongen.py):
an object is a regular triangle, a square or a circle, in a circle of diameter 1; turned, stretched 32 u-fold along x
and 32 v-fold along y, turned again, and put where it keeps a pixel away from the border. u and v are uniform in
[0.2, 0.8], angles and place uniform. The ground's gray is one of 0..114 and an object's one of 140..255, or, half the
time, the other way round; two objects may be of one gray.

Ours: a pixel belongs to an object if its centre does (there: polygons of pygame; ellipses have 20 corners). The overlap
is counted in pixels (there: estimated from projections), and a second object is drawn anew until it fits. There are as
many images as asked for (the paper draws new ones forever), of each class as many, unless `balance` says otherwise.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fanin.data.images import Dataset, Images
from fanin.data.sources import Outline
from fanin.errors import require, unknown
from fanin.ranges import is_whole

KINDS = ("triangle", "parallelogram", "ellipse")
CORNERS = (3, 4, 0)  # of each kind
ALONE = -1
CLASSES = ((0, ALONE), (1, ALONE), (2, ALONE), (0, 1), (1, 2), (0, 2), (0, 0), (1, 1), (2, 2))  # the objects' kinds
CYCLES = {"even": (1,) * 9, "drawn": (3, 3, 3, 2, 2, 2, 1, 1, 1)}  # how many of each class, before all comes again

SIDE = 32  # pixels
SPANS = 0.2, 0.8  # diameters of the stretched circle, in sides
BORDER = 1  # pixels that stay free
DARK, BRIGHT = (0, 114), (140, 255)
HIDDEN = 0.5  # the largest share of the first object that the second may cover
BLOCK = 1800  # images drawn at a time: whole cycles


@dataclass(frozen=True)
class Shapeset:
    """A source of `train` + `test` images that needs no files. `seed` decides them, and no seed of a run does.

    balance="even": every class equally often. "drawn": as in the paper's program, which draws one or two objects, each
    of any kind: a kind alone 1/6, two kinds 1/9, one kind twice 1/18, so that a constant guess errs 5 times in 6.
    The first k training images are the same ones for every `train` >= k.
    """

    def __call__(self, *, train: int, test: int, balance: str, seed: int) -> Dataset:
        self.check_files(train=train, test=test, balance=balance, seed=seed)
        parts = [draw(count, balance=balance, seed=(seed, part)) for part, count in enumerate((train, test))]
        return Dataset(train=parts[0], test=parts[1], classes=len(CLASSES))

    def check_files(self, *, train: int, test: int, balance: str, seed: int) -> Outline:
        for key, count in (("data.train", train), ("data.test", test)):
            require(is_whole(count, least=18), key, "must be a whole number of at least 18 images", count)
        if balance not in CYCLES:
            raise unknown("data.balance", balance, CYCLES)
        rule = "must be a whole number from 0 to 2^32 - 1"
        require(is_whole(seed, least=0) and seed < 2**32, "data.seed", rule, seed)
        return Outline(train, test, shape=(1, SIDE, SIDE), classes=len(CLASSES))

    def fetch(self, *, train: int, test: int, balance: str, seed: int) -> None:
        """Nothing to do: whoever loads the images draws them."""


def draw(count: int, *, balance: str, seed: tuple[int, int]) -> Images:
    """The first `count` of the endless images of `seed`: uint8 (N, 1, 32, 32), and their classes."""
    blocks = -(-count // BLOCK)
    labels = np.resize(np.repeat(np.arange(len(CLASSES)), CYCLES[balance]), BLOCK)
    # RandomState, since its numbers are the ones that NumPy promises never to change.
    images = [_draw_block(labels, np.random.RandomState([*seed, block])) for block in range(blocks)]
    return Images(
        images=torch.from_numpy(np.concatenate(images)[:count, None]),
        labels=torch.from_numpy(np.tile(labels, blocks)[:count].astype(np.int64)),
    )


def _draw_block(labels: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    first, second = np.array(CLASSES)[labels].T
    bright = random.random_sample(len(labels)) < 0.5
    images = np.tile(_grays(bright, random), (1, SIDE, SIDE))
    behind = draw_objects(first, random)
    images = np.where(behind, _grays(~bright, random), images)
    pairs = np.flatnonzero(second != ALONE)
    front = draw_over(behind[pairs], second[pairs], random)
    images[pairs] = np.where(front, _grays(~bright[pairs], random), images[pairs])
    return images


def _grays(bright: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """A gray of the bright or the dark range each: uint8 (N, 1, 1)."""
    low, high = np.where(bright[:, None], BRIGHT, DARK).T
    return (low + np.floor(random.random_sample(len(bright)) * (high - low + 1))).astype(np.uint8)[:, None, None]


def draw_over(behind: np.ndarray, kinds: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Objects of `kinds`, each drawn anew until it leaves enough of the one behind it in sight."""
    front = draw_objects(kinds, random)
    while len(bad := np.flatnonzero((front & behind).sum((1, 2)) > HIDDEN * behind.sum((1, 2)))):
        front[bad] = draw_objects(kinds[bad], random)
    return front


def draw_objects(kinds: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """An object of each of `kinds` (N,): bool (N, 32, 32), where it is."""
    uniform = random.random_sample((6, len(kinds)))
    spans = SIDE * (SPANS[0] + (SPANS[1] - SPANS[0]) * uniform[:2])
    forms = stretch(spans, turns=2 * np.pi * uniform[2:4])
    masks = np.empty((len(kinds), SIDE, SIDE), dtype=bool)
    for kind, corners in enumerate(CORNERS):
        mine = kinds == kind
        centers = place(forms[mine], uniform[4:, mine], corners=corners)
        masks[mine] = fill(forms[mine], centers, corners=corners)
    return masks


def stretch(spans: np.ndarray, *, turns: np.ndarray) -> np.ndarray:
    """(N, 2, 2): turn by turns[0], stretch the unit circle to the diameters `spans` (2, N), turn by turns[1]."""
    before, after = (np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) for turn in turns)
    return np.einsum("ijn,jn,jkn->nik", after, spans / 2, before)


def place(forms: np.ndarray, uniform: np.ndarray, *, corners: int) -> np.ndarray:
    """Centers (N, 2) in pixels, `uniform` (2, N) of the way between those that keep the object inside the border."""
    if corners:
        points = forms @ _directions(corners)
        low, high = points.min(2), points.max(2)
    else:
        high = np.linalg.norm(forms, axis=2)  # how far an ellipse reaches along x and y
        low = -high
    least, most = BORDER - low, SIDE - BORDER - high
    return least + (most - least) * uniform.T


def fill(forms: np.ndarray, centers: np.ndarray, *, corners: int) -> np.ndarray:
    """bool (N, y, x): the pixels whose centers lie in what `forms` make of the unit circle, or of a polygon in it."""
    back = np.linalg.inv(forms)
    if corners:  # inside is what is at most cos(pi / corners) away along the normal of every edge
        back = _directions(corners, first=0.5).T @ back / np.cos(np.pi / corners)
    pixels = np.arange(SIDE) + 0.5
    x, y = back[:, :, :1] * pixels, back[:, :, 1:] * pixels - back @ centers[:, :, None]
    along = [y[:, edge, :, None] + x[:, edge, None, :] for edge in range(back.shape[1])]
    reach = np.maximum.reduce(along) if corners else np.square(along).sum(0)
    return reach <= 1


def _directions(corners: int, *, first: float = 0.0) -> np.ndarray:
    """(2, corners): the corners of a regular polygon; those half a step further are the normals of its edges."""
    angles = 2 * np.pi * (first + np.arange(corners)) / corners
    return np.array([np.cos(angles), np.sin(angles)])
