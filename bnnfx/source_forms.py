"""How models are named on a command line; `model_source` builds them, and needs torch for it."""

LIBRARIES = {"torchvision": "vision", "timm": "timm"}
"""The libraries whose models have names, and the extra of this package that installs each."""

IMAGE_SIZE = 224
FORMS = ", ".join(f"'{library}:NAME'" for library in LIBRARIES) + ", 'file.py:function' or 'module:function'"
MARKED_FORMS = FORMS.replace("'", "`")
"""The same, for help texts."""


def named_model(source: str) -> tuple[str, str] | None:
    """The library and the name of a model that is a library's, which takes an image; None for any other.

    >>> named_model("torchvision:resnet18"), named_model("net.py:make")
    (('torchvision', 'resnet18'), None)
    """
    library, separator, name = source.partition(":")
    return (library, name) if separator and library in LIBRARIES else None


def sources_of(text: str) -> list[str]:
    """Several models of libraries, with commas between; or one model, however it is named.

    >>> sources_of("torchvision:resnet18,timm:resnet10t"), sources_of("odd,name.py:make")
    (['torchvision:resnet18', 'timm:resnet10t'], ['odd,name.py:make'])
    """
    parts = [part.strip() for part in text.split(",")]
    return parts if all(map(named_model, parts)) else [text]
