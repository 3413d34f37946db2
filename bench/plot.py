# SPDX-License-Identifier: BSD-3-Clause
"""The plot: for each case a bar for every peer, as a ratio to Sluice's."""
from html import escape

COLOURS = {"sluice": "#1b6ca8", "qsd": "#c44e52", "qsd2": "#dd8452",
           "nbdkit": "#55a868", "ceiling": "#999999", "copy": "#999999",
           "qemu-img": "#8172b3"}
ROW, LEFT, WIDTH = 16, 360, 420


def write(path, results):
    rows, y = [], 30
    for r in results:
        ours = r["medians"].get("sluice", {}).get(r["chart"])
        if not ours:
            continue
        n = len(r["medians"])
        rows.append(f'<text x="{LEFT - 8}" y="{y + n * ROW / 2 + 4}" '
                    f'text-anchor="end">{escape(r["case"])}</text>')
        for name, m in r["medians"].items():
            ratio = m.get(r["chart"], 0) / ours
            width = min(ratio, 2) / 2 * WIDTH
            rows.append(
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" '
                f'height="{ROW - 3}" fill="{COLOURS.get(name, "#777")}"/>'
                f'<text x="{LEFT + width + 5:.1f}" y="{y + 11}">'
                f'{name} {ratio:.2f}</text>')
            y += ROW
        y += ROW // 2
    middle = LEFT + WIDTH / 2
    with open(path, "w") as f:
        f.write(f'<svg xmlns="http://www.w3.org/2000/svg" '
                f'width="{LEFT + WIDTH + 140}" height="{y + 10}" '
                f'font-family="sans-serif" font-size="11">\n'
                f'<rect width="100%" height="100%" fill="white"/>'
                f'<text x="{LEFT}" y="18">rate, as a ratio to Sluice&apos;s '
                f'(1 = equal, longer is faster)</text>\n'
                f'<line x1="{middle}" x2="{middle}" y1="24" y2="{y}" '
                f'stroke="#bbb"/>\n' + "\n".join(rows) + "\n</svg>\n")
