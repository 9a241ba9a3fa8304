"""The font of pictures, a package of the extra `draw`: its files, and how wide a text is in it."""

from functools import cache

from bnnfx.inspect.drawing.extra import require_extra

FONT = 7.0  # its size
FONT_FAMILY = "'Source Sans Pro', 'Source Sans 3', Helvetica, Arial, 'DejaVu Sans', sans-serif"
_EM = 1.0  # of what the font does not have, such as Chinese characters


def width_of(text: str, bold: int = 0) -> float:
    """What a line of text takes, its first `bold` letters in bold: as long as it is drawn, whatever the font.

    >>> round(width_of("N×64"), 2)
    14.97
    """
    ems = [_advances("bold" if index < bold else "regular").get(ord(letter), _EM) for index, letter in enumerate(text)]
    return FONT * sum(ems)


def font_files() -> dict[str, str]:
    """The file of each style that pictures use."""
    files = require_extra("font_source_sans_pro").font_files_ttf
    return {"regular": files["SourceSansPro"], "bold": files["SourceSansProBold"], "italic": files["SourceSansProIt"]}


@cache
def _advances(style: str) -> dict[int, float]:
    """How wide each character is, in ems."""
    with require_extra("fontTools.ttLib").TTFont(font_files()[style], lazy=True) as font:
        em, widths = font["head"].unitsPerEm, font["hmtx"]
        return {code: widths[glyph][0] / em for code, glyph in font.getBestCmap().items()}
