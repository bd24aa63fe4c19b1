"""Colours that stay apart for colour-blind eyes, and text colours that stay legible on them."""

from __future__ import annotations

Color = tuple[int, int, int]

# Okabe and Ito (2008) without black and with its yellow darkened, then three of Paul Tol's "muted": told apart under
# deuteranopia and protanopia, and visible over photographs.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (136, 34, 85),
    (153, 153, 51),
    (51, 34, 136),
)


def instance_color(label: int, occurrence: int) -> Color:
    """The colour of an image's first instance of a class is the class's own; further ones go through the palette."""
    return PALETTE[(label + 3 * occurrence) % len(PALETTE)]  # steps of 3 reach all ten, far hues first


def luminance(color: Color) -> float:
    """Relative luminance in [0, 1] (WCAG 2.1)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def text_color(background: Color) -> Color:
    """Black or white, whichever contrasts more."""
    return (0, 0, 0) if luminance(background) > 0.179 else (255, 255, 255)
