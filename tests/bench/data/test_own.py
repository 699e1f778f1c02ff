"""The user's own data from code: what a factory may return, and what is said where it may not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vcompress.bench.bundle import IMAGENET, Preprocess
from vcompress.bench.data.dataset import Dataset, batches
from vcompress.bench.data.own import SAMPLE
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import open_dataset, open_recorded

BASE = '''
import numpy as np
from PIL import Image


def pixels(kind, number, size=16):
    rng = np.random.default_rng(1000 * kind + number)
    found = rng.integers(0, 120, (size, size, 3))
    found[..., kind % 3] += 100
    return found.astype(np.uint8)


def pairs(start, count, target=lambda n: n % 3):
    return [(pixels(n % 3, n), target(n)) for n in range(start, start + count)]


def splits():
    return {"train": pairs(0, 30), "val": pairs(30, 6), "test": pairs(36, 9)}


class Images:
    """As a torch Dataset: images are made when they are asked for."""

    def __init__(self, start, count):
        self.start, self.count, self.opened = start, count, 0
        self.targets = [n % 3 for n in range(start, start + count)]

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        self.opened += 1
        return Image.fromarray(pixels((self.start + i) % 3, self.start + i)), self.targets[i]
'''


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes the user's module `own_splits` into the working folder: `BASE` and what is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def make(text: str = "", base: str = BASE) -> None:
        (tmp_path / "own_splits.py").write_text(base + text)
        sys.modules.pop("own_splits", None)

    yield make
    sys.modules.pop("own_splits", None)


def opened(name: str = "splits", task: str = "classification", **given: object) -> Dataset:
    return open_dataset(f"own_splits:{name}", task=task, **given)  # type: ignore[arg-type]


def test_pairs_of_arrays_and_numbers_are_splits(write: Callable[..., None]) -> None:
    write()
    dataset = opened()
    assert dataset.source == "own_splits:splits"
    assert dataset.classes == ("0", "1", "2")
    assert {name: part.tolist() for name, part in dataset.splits.items()} == {
        "train": [*range(30)], "val": [*range(30, 36)], "test": [*range(36, 45)],
    }  # fmt: skip
    assert dataset.targets.dtype == np.int64
    assert dataset.targets.tolist() == [n % 3 for n in range(45)]
    assert dataset.default_preprocess == Preprocess(size=(32, 32))
    assert dataset.record()["splits"] == {"train": 30, "val": 6, "test": 9}
    import own_splits  # type: ignore[import-not-found]

    for n in (0, 29, 30, 44):
        assert np.array_equal(np.asarray(dataset.image(n)), own_splits.pixels(n % 3, n))
    ((images, labels),) = batches(dataset, "test", Preprocess(size=(16, 16)), 16)
    assert images.shape == (9, 3, 16, 16) and labels.tolist() == [n % 3 for n in range(36, 45)]


def test_the_example_of_the_guide_works(write: Callable[..., None], tmp_path: Path) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "models-and-data.md").read_text()
    write(base=guide.partition("```python\n")[2].partition("```")[0])
    for part, count in (("train", 9), ("test", 2)):
        (tmp_path / "photos" / part).mkdir(parents=True)
        for n in range(count):
            picture = Image.fromarray(np.full((9, 9), 20 * n, np.uint8))
            for name in ("cat", "dog"):
                picture.save(tmp_path / "photos" / part / f"{name}_{n}.png")
    dataset = opened(root="photos")
    assert dataset.classes == ("cat", "dog")
    assert {k: len(v) for k, v in dataset.splits.items()} == {"train": 16, "val": 2, "test": 4}


def test_seed_root_classes_and_preprocessing_are_the_users(write: Callable[..., None]) -> None:
    write('''
def told(root, seed=3):
    assert (root, seed) == ("there", 7)
    return {**splits(), "classes": ["red", "green", "blue"],
            "preprocess": {"size": [20, 24], "mean": [0.5, 0.5, 0.5]}}

def anything(**given):
    assert given == {"root": None, "seed": 0}
    from vcompress.bench.bundle import IMAGENET
    return {**splits(), "preprocess": IMAGENET}
''')  # fmt: skip
    dataset = opened("told", root="there", seed=7)
    assert dataset.classes == ("red", "green", "blue")
    assert dataset.default_preprocess == Preprocess(size=(20, 24), mean=(0.5,) * 3)
    assert (dataset.record()["root"], dataset.record()["seed"]) == ("there", 7)
    assert opened("anything").default_preprocess == IMAGENET


def test_val_is_taken_from_train_by_the_seed(write: Callable[..., None]) -> None:
    write('''
def two(): return {"train": pairs(0, 60), "test": pairs(60, 9)}

def numbers(): return {"train": pairs(0, 60, float), "test": pairs(60, 9, float)}
''')  # fmt: skip
    first, again, other = (opened("two", seed=seed) for seed in (0, 0, 1))
    assert {k: len(v) for k, v in first.splits.items()} == {"train": 54, "val": 6, "test": 9}
    assert first.splits["test"].tolist() == [*range(60, 69)]
    assert np.bincount(first.targets[first.splits["val"]]).tolist() == [2, 2, 2]
    assert not set(first.splits["train"]) & set(first.splits["val"])
    assert again.fingerprint == first.fingerprint != other.fingerprint
    assert first.splits["val"].tolist() != other.splits["val"].tolist()
    assert len(opened("numbers", "regression").splits["val"]) == 6


def test_test_alone_is_enough_to_measure_on(write: Callable[..., None]) -> None:
    write("def only(): return {'test': pairs(0, 9)}")
    assert {k: len(v) for k, v in opened("only").splits.items()} == {
        "train": 0, "val": 0, "test": 9,
    }  # fmt: skip


def test_images_of_every_kind_are_the_same_picture(
    write: Callable[..., None], tmp_path: Path
) -> None:
    write('''
import torch
from pathlib import Path

def kinds():
    image = pixels(0, 5)
    Image.fromarray(image).save("a.png")
    grey = image[..., 0]
    of = [image, Image.fromarray(image), "a.png", Path("a.png"),
          torch.from_numpy(image).permute(2, 0, 1),
          grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]]
    return {"test": [(x, n % 2) for n, x in enumerate(of)]}
''')  # fmt: skip
    dataset = opened("kinds")
    found = [np.asarray(dataset.image(n)) for n in range(9)]
    for picture in found[:5]:
        assert np.array_equal(picture, found[0]) and picture.shape == (16, 16, 3)
    for picture in found[5:]:
        assert np.array_equal(picture, found[0][..., 0])


def test_targets_are_read_from_the_attribute_and_no_more_images_than_the_sample(
    write: Callable[..., None],
) -> None:
    write('''
MADE = {"train": Images(0, 300), "val": Images(300, 60), "test": Images(360, 90)}

def lazy(): return MADE

class Part:
    def __init__(self, dataset, indices): self.dataset, self.indices = dataset, indices
    def __len__(self): return len(self.indices)
    def __getitem__(self, i): return self.dataset[self.indices[i]]

def parts():
    whole = Images(0, 450)
    whole.classes = ["red", "green", "blue"]
    train, test = Part(whole, [*range(0, 300)]), Part(Part(whole, [*range(300, 450)]), [*range(90)])
    MADE["whole"] = whole
    return {"train": train, "test": test}
''')  # fmt: skip
    dataset = opened("lazy")
    assert dataset.targets.tolist() == [n % 3 for n in range(450)]
    import own_splits

    for name in ("train", "val", "test"):
        assert own_splits.MADE[name].opened <= 2 * SAMPLE + 1
    dataset = opened("parts")
    assert dataset.classes == ("red", "green", "blue")
    assert dataset.targets.tolist() == [n % 3 for n in range(390)]
    assert own_splits.MADE["whole"].opened <= 4 * SAMPLE + 1


@pytest.mark.parametrize(
    ("target", "classes", "targets"),
    [
        ("['zebra', 'ant', 'cat'][n % 3]", ("ant", "cat", "zebra"), [2, 0, 1]),
        ("np.int64(n % 3)", ("0", "1", "2"), [0, 1, 2]),
        ("np.array(n % 3, dtype=np.uint8)", ("0", "1", "2"), [0, 1, 2]),
        ("np.str_('ba'[n % 2])", ("a", "b"), [1, 0, 1]),
    ],
)
def test_classes_are_numbers_or_names(
    write: Callable[..., None], target: str, classes: tuple[str, ...], targets: list[int]
) -> None:
    write(f"def some(): return {{'test': pairs(0, 9, lambda n: {target})}}")
    dataset = opened("some")
    assert dataset.classes == classes
    assert dataset.targets[:3].tolist() == targets


@pytest.mark.parametrize(
    ("target", "names", "rows"),
    [
        ("[['cat'], ['dog', 'cat'], []][n % 3]", ("cat", "dog"), [[1, 0], [1, 1], [0, 0]]),
        ("{'dog', 'cat'} if n % 3 else set()", ("cat", "dog"), [[0, 0], [1, 1], [1, 1]]),
        ("[[0], [2, 1], []][n % 3]", ("0", "1", "2"), [[1, 0, 0], [0, 1, 1], [0, 0, 0]]),
        ("[[0], [1], [1]][n % 3]", ("0", "1"), [[1, 0], [0, 1], [0, 1]]),
        ("np.eye(3)[n % 3]", ("0", "1", "2"), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("[False, n % 2 > 0]", ("0", "1"), [[0, 0], [0, 1], [0, 0]]),
    ],
)
def test_labels_are_names_numbers_or_0_and_1_for_each(
    write: Callable[..., None], target: str, names: tuple[str, ...], rows: list[list[int]]
) -> None:
    write(f"def some(): return {{'test': pairs(0, 9, lambda n: {target})}}")
    dataset = opened("some", "multilabel")
    assert dataset.classes == names
    assert dataset.targets.dtype == np.int8
    assert dataset.targets[:3].tolist() == rows


def test_numbers_are_one_or_more_an_image(write: Callable[..., None]) -> None:
    write('''
def one(): return {"test": pairs(0, 4, lambda n: n / 2)}

def two():
    return {"test": pairs(0, 4, lambda n: np.array([n, -n])), "classes": ["up", "down"]}
''')  # fmt: skip
    one, two = opened("one", "regression"), opened("two", "regression")
    assert one.classes == ("number",) and one.targets.tolist() == [[0], [0.5], [1], [1.5]]
    assert two.classes == ("up", "down") and two.targets[3].tolist() == [3, -3]
    assert two.targets.dtype == np.float32


CHANGES = {
    "a target": "found['train'][6] = (found['train'][6][0], 2 - found['train'][6][1])",
    "the length": "found['train'].pop()",
    "a sampled image": "found['test'][0] = (pixels(0, 99), found['test'][0][1])",
    "a name": "found['classes'] = ['a', 'b', 'c']",
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_fingerprint_notices_a_change_of(what: str, write: Callable[..., None]) -> None:
    write(f"""
def changed():
    found = splits()
    {CHANGES[what]}
    return found
""")
    assert opened().fingerprint == opened().fingerprint
    assert opened("changed").fingerprint != opened().fingerprint


def test_the_bytes_of_files_are_in_the_fingerprint(write: Callable[..., None]) -> None:
    write('''
def files():
    Image.fromarray(pixels(0, 0)).save("a.png")
    return {"test": [("a.png", 0), ("b.png", 1)]}
''')  # fmt: skip
    Image.fromarray(np.zeros((9, 9), np.uint8)).save("b.png")
    before = opened("files").fingerprint
    assert opened("files").fingerprint == before
    Image.fromarray(np.ones((9, 9), np.uint8)).save("b.png")
    assert opened("files").fingerprint != before


def test_an_image_that_cannot_be_read_is_named_when_it_is_needed(
    write: Callable[..., None],
) -> None:
    write('''
class Bad(Images):
    def __getitem__(self, i):
        if i == 2:
            return Image.open("cut.png"), self.targets[i]
        if i == 3:
            raise OSError("the disk is gone")
        return super().__getitem__(i)

def bad(): return {"test": Bad(0, 9)}
''')  # fmt: skip
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99), np.uint8)).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:500])
    dataset = opened("bad")
    with pytest.raises(UserError, match=r"bad: image 2 of test cannot be read \(.*trunc"):
        dataset.values(2, IMAGENET)
    with pytest.raises(
        UserError, match=r"item 3 of test failed with OSError: the disk is gone \(own_splits.py, li"
    ):
        dataset.values(3, IMAGENET)
    dataset = opened("bad", on_bad_image="skip")
    ((images, _),) = batches(dataset, "test", Preprocess(size=(16, 16)), 16)
    assert len(images) == 7 and dataset.bad_images.keys() == {2, 3}


WRONG = {
    "class Gone: pass": "has no function 'made'",
    "def mode(): pass": "own_splits has no function 'made'. Did you mean 'mode'",
    "def made(): return 1 // 0":
        r"own_splits:made failed with ZeroDivisionError: .* \(own_splits.py, line 38: def made\(\)",
    "def made():\n    return {'test': pairs(0, 9, int('x'))}":
        r"failed with ValueError: .*\(own_splits.py, line 39: return {'test': pairs",
    "def made(size): return splits()": "it wants an argument 'size'. Only seed and root",
    "def made(): return None": "own_splits:made returned None; expected a mapping with train",
    "def made(): return [splits()]": "returned a list; expected a mapping",
    "def made(): return {'test': pairs(0, 9), 'valid': []}":
        "an unknown key 'valid'. Did you mean 'val'",
    "def made(): return {'train': pairs(0, 9)}": "returned train without test",
    "def made(): return {}": "returned no split without test",
    "def made(): return {'test': []}": "test is empty. Give it images, or leave it out",
    "def made(): return {**splits(), 'val': []}": r"val is empty.*val is then taken from train",
    "def made(): return {'test': iter([])}": "test is a list_iterator; expected a sequence",
    "def made(): return {'test': {0: 1}}": "test is a dict; expected a sequence",
    "def made(): return {'test': [(1, 2, 3)]}":
        r"item 0 of test is a tuple of 3; expected a pair \(image, target\)",
    "def made(): return {'test': [{'image': 1, 'label': 2}]}": "is a dict; expected a pair",
    "def made(): return {'test': [(b'x', 0), (b'y', 1)]}":
        "image 0 of test is a bytes; expected a PIL image, a path, or a uint8 array",
    "def made(): return {'test': [(np.zeros((3, 4, 4), np.float32), n) for n in (0, 1)]}":
        r"a ndarray \[3, 4, 4\] float32; expected .* leave ToTensor and Normalize out",
    "def made(): return {'test': [(np.zeros((4, 4, 4), np.uint8), n) for n in (0, 1)]}":
        r"\[4, 4, 4\] uint8; expected",
    "def made(): return {'test': pairs(0, 9, float)}": "target 0 of test is 0.0; expected the num",
    "def made(): return {'test': pairs(0, 9, lambda n: n > 3)}": "target 0 of test is False; exp",
    "def made(): return {'test': pairs(0, 9, lambda n: n if n else 'a')}": "Give one kind",
    "def made(): return {'test': pairs(0, 9, lambda n: 10**9)}": "the largest target is 1000000000",
    "def made(): return {'test': pairs(0, 9, lambda n: -n)}": "is -1, which is none of the 1",
    "def made(): return {'test': pairs(0, 9, lambda n: 0)}": "found 1 class; expected at least two",
    "def made(): return {'test': pairs(0, 9), 'classes': ['a', 'b']}":
        "target 2 of test is 2, which is none of the 2 classes a, b",
    "def made(): return {'test': pairs(0, 9, lambda n: 'rad'), 'classes': ['red', 'blue']}":
        "is 'rad', which is none of the 2 classes red, blue. Did you mean 'red'",
    "def made(): return {**splits(), 'test': pairs(0, 9, lambda n: n)}":
        "the classes of test and train differ: target 3 of test is 3, and train has 0, 1, 2",
    "def made(): return {**splits(), 'classes': list('abcd')}": "'d' has no image in train",
    "def made(): return {**splits(), 'classes': 'abc'}": "classes = 'abc'; expected printable",
    "def made(): return {**splits(), 'classes': ['a', 'b', 'a']}": "the class 'a' stands twice",
    "def made(): return {**splits(), 'preprocess': {'siz': [1, 1]}}":
        "own_splits:made, preprocess: .*siz",
    "def made():\n    a, b = Images(0, 9), Images(9, 9)\n"
    "    a.classes, b.classes = ['x', 'y', 'z'], ['x', 'y', 'w']\n"
    "    return {'train': a, 'test': b}":
        r"the classes of test and train differ \(w, z\)",
    "def made():\n    a = Images(0, 9)\n    a.targets.pop()\n    return {'test': a}":
        "test has 9 images, and its attribute `targets` 8",
    "def made():\n    class Other(Images):\n        def __getitem__(self, i): "
    "return super().__getitem__(i)[0], (i + 1) % 3\n    return {'test': Other(0, 9)}":
        "target 0 of test is 1 in its item and 0 in the attribute `targets`",
    "def made():\n    class Turned(Images):\n        def __getitem__(self, i): "
    "return pixels(0, self.opened), super().__getitem__(i)[1]\n    return {'test': Turned(0, 9)}":
        "image 0 of test is another one each time. Leave random transforms out",
    "def made():\n    class Endless(Images):\n        def __len__(self): raise OSError('no')\n"
    "    return {'test': Endless(0, 9)}":
        r"len\(\) of test failed with OSError: no \(own_splits.py, line 40",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_in_one_message(text: str, write: Callable[..., None]) -> None:
    write("\n\n" + text)
    with pytest.raises(UserError, match=WRONG[text]):
        opened("made")


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        ("multilabel", "'cat'", "target 0 of test is 'cat'; expected a list of labels"),
        ("multilabel", "[0.5, 1]", "the labels are of the types float, int; expected names alone"),
        ("multilabel", "[0, 1, 0][: 2 + n % 2]", "holds a label twice"),
        ("multilabel", "[]", "no image has a label"),
        ("regression", "'3'", "target 0 of test is '3'; expected a finite number"),
        ("regression", "float('nan')", "is nan; expected a finite number"),
        ("regression", "[1, 2][: 2 - n % 2]", r"target 1 of test is \[1\]; expected 2 finite num"),
    ],
)
def test_targets_that_do_not_fit_the_task_are_named(
    task: str, target: str, message: str, write: Callable[..., None]
) -> None:
    write(f"def made(): return {{'test': pairs(0, 9, lambda n: {target})}}")
    with pytest.raises(UserError, match=message):
        opened("made", task)


def test_a_module_that_is_not_there_or_fails_is_named(write: Callable[..., None]) -> None:
    write()
    with pytest.raises(UserError, match=r"'own_split' cannot be imported from .*mean 'own_splits'"):
        open_dataset("own_split:splits")
    with pytest.raises(UserError, match=r"Did you mean 'torchvision'"):
        open_dataset("torchvison:CIFAR10")
    write("\n\nimport nonesuch")
    with pytest.raises(UserError, match=r"No module named 'nonesuch' \(own_splits.py, line \d+: "):
        opened()
    write("\n\nLIMIT = undefined")
    with pytest.raises(UserError, match=r"NameError: .* \(own_splits.py, line 38: LIMIT = undef"):
        opened()
    write("\n\ndef broken(:")
    with pytest.raises(UserError, match=r"SyntaxError: .* \(own_splits.py, line 38: def broken"):
        opened()


def test_what_a_bundle_records_is_run_only_where_it_is_trusted(write: Callable[..., None]) -> None:
    write()
    record = opened().record()
    sys.modules.pop("own_splits")
    for trust in (None, "own_splits:other", "own_splits"):
        with pytest.raises(UserError, match=r"runs/net: its data are made by your own code 'own_s"):
            open_recorded(record, "classification", trust, "runs/net")
    assert "own_splits" not in sys.modules
    with pytest.raises(UserError, match=r"--trust own_splits:splits, with a comma between"):
        open_recorded(record, "classification", "nets:small", "runs/net")
    for trust in ("own_splits:splits", "nets:small, own_splits:splits"):
        found = open_recorded(record, "classification", trust, "runs/net")
        assert found.fingerprint == record["fingerprint"]
