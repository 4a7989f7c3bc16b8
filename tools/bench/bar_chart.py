"""Bar charts as SVG text, without any library: one panel for each quantity, one bar for each system."""
from xml.sax.saxutils import escape

PANEL_WIDTH, NAME_WIDTH, VALUE_WIDTH = 470, 90, 90
BAR_HEIGHT, BAR_GAP, TITLE_HEIGHT, MARGIN = 18, 6, 28, 16
OURS, OTHERS, INK = "#2a6f97", "#b8c4cc", "#1c2529"


def panel(title, bars, left, top):
    """`bars`: (name, number, text, is_ours). Bars begin at zero and share the panel's scale."""
    lines = [f'<text x="{left}" y="{top + 16}" font-weight="bold">{escape(title)}</text>']
    room = PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH
    most = max(number for _, number, _, _ in bars) or 1
    for row, (name, number, text, is_ours) in enumerate(bars):
        y = top + TITLE_HEIGHT + row * (BAR_HEIGHT + BAR_GAP)
        width = max(1, round(room * number / most))
        lines += [
            f'<text x="{left + NAME_WIDTH - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{left + NAME_WIDTH}" y="{y}" width="{width}" height="{BAR_HEIGHT}"'
            f' fill="{OURS if is_ours else OTHERS}"/>',
            f'<text x="{left + NAME_WIDTH + width + 6}" y="{y + 13}">{escape(text)}</text>',
        ]
    return lines


def chart(title, panels):
    """`panels`: (title, bars), two beside each other."""
    rows = (len(panels) + 1) // 2
    height = TITLE_HEIGHT + max(len(bars) for _, bars in panels) * (BAR_HEIGHT + BAR_GAP) + MARGIN
    size = (2 * PANEL_WIDTH + 3 * MARGIN, 2 * MARGIN + TITLE_HEIGHT + rows * height)
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}"'
             f' font-family="sans-serif" font-size="13" fill="{INK}">',
             f'<rect width="{size[0]}" height="{size[1]}" fill="#ffffff"/>',
             f'<text x="{MARGIN}" y="{MARGIN + 14}" font-size="16" font-weight="bold">{escape(title)}</text>']
    for number, (name, bars) in enumerate(panels):
        left = MARGIN + number % 2 * (PANEL_WIDTH + MARGIN)
        lines += panel(name, bars, left, MARGIN + TITLE_HEIGHT + number // 2 * height)
    return "\n".join([*lines, "</svg>", ""])
