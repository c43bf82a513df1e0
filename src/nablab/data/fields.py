"""Fields of experiments that name what is to be learned or asked, by name or path."""

from __future__ import annotations

from typing import Annotated

from nablab.settings.kinds import Kind


class Images(Kind):
    """Labeled images by name or path; ``mnist@10000`` draws 10,000 training images."""

    words = "labeled images by name, folder or .npz file"
    plural = words
    examples = ("digits", "digits@200", "mnist@1000")

    def check(self, text: str) -> None:
        """See `Kind.check`."""
        from nablab.data.tasks import check_images

        check_images(text)

    def data_sets(self, text: str) -> tuple[str, ...]:
        """Return the one set."""
        return (text,)


class Texts(Kind):
    """Labeled texts by name or path; ``ag-news@10000`` draws 10,000 training texts."""

    words = "labeled texts by name, table or folder"
    plural = words
    examples = ("king-james", "king-james@500", "ag-news@1000")

    def check(self, text: str) -> None:
        """See `Kind.check`."""
        from nablab.data.text.tasks import check_texts

        check_texts(text)

    def data_sets(self, text: str) -> tuple[str, ...]:
        """Return the one set."""
        return (text,)


class Vectors(Kind):
    """Word vectors by name or path; ``glove@50000`` takes the first 50,000 words."""

    words = "word vectors by name or file"
    plural = words
    examples = ("glove", "glove@50000")

    def check(self, text: str) -> None:
        """See `Kind.check`."""
        from nablab.data.names import check_vectors

        check_vectors(text)

    def data_sets(self, text: str) -> tuple[str, ...]:
        """Return the one set."""
        return (text,)


class Questions(Kind):
    """Analogy questions by name or path."""

    words = "analogy questions by name or file"
    plural = words
    examples = ("family", "capital")

    def check(self, text: str) -> None:
        """See `Kind.check`."""
        from nablab.data.text.questions import load_analogies

        load_analogies(text)

    def source(self, text: str) -> str:
        """Return the hash of the user's file."""
        from nablab.data.identity import source_hash
        from nablab.data.text.questions import NAMES

        return "" if text in NAMES else source_hash(text)


class Function(Kind):
    """A function of one variable by name, or an expression of x."""

    words = "a function by name or an expression of x"
    plural = "functions by name or expressions of x"
    examples = ("sinc", "x**2@-1..1@40")

    def check(self, text: str) -> None:
        """See `Kind.check`."""
        from nablab.data.functions.targets import target

        target(text)


class Task(Kind):
    """A function or labeled images."""

    words = "a function or labeled images"
    plural = "functions or labeled images"
    examples = ("sinc", "digits@200")

    def check(self, text: str) -> None:
        """See `Kind.check`."""
        from nablab.data.tasks import check_task

        check_task(text)

    def data_sets(self, text: str) -> tuple[str, ...]:
        """Return the set, if it is one of images."""
        from nablab.data.tasks import image_sets

        return image_sets([text])


TextsField = Annotated[str, Texts()]
VectorsField = Annotated[str, Vectors()]
QuestionsField = Annotated[str, Questions()]
ImagesField = Annotated[str, Images()]
FunctionField = Annotated[str, Function()]
TaskField = Annotated[str, Task()]
