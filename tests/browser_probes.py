"""JavaScript that tests run inside a page, to see what a visitor would."""

from __future__ import annotations

# Pixels by which the page is wider than its window.
STICKS_OUT = "() => document.documentElement.scrollWidth - innerWidth"

# Text whose contrast with the ground it stands on is below 4.5 (WCAG 2.2, 1.4.3): tag, text, ratio.
LOW_CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > .99) return c;
    }
    return [255, 255, 255];
  };
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const seen = (e) => own(e) && e.checkVisibility() && !e.disabled && !e.closest("svg, [aria-hidden=true]");
  return [...document.querySelectorAll("body *")].filter(seen).map((e) => {
    const [x, y] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((p, q) => q - p);
    return [e.tagName, e.textContent.trim().slice(0, 40), (x + .05) / (y + .05)];
  }).filter((row) => row[2] < 4.5);
}"""

# Things one can act on, and pictures, that a screen reader would call nothing.
NAMELESS = """() => [...document.querySelectorAll(
    "button, input, select, a, [role=img], [role=group], [role=region], [role=application]")]
  .filter((e) => !(e.labels?.length || e.textContent.trim() || e.getAttribute("aria-label")
    || e.getAttribute("aria-labelledby"))).map((e) => e.outerHTML.slice(0, 120))"""

# Pictures, and tables of text, that show only a part of themselves: name or class, width, room.
SCROLLS = """() => [...document.querySelectorAll(".drawing, .map, .wide:has(.stacked)")]
  .filter((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)
  .map((e) => [e.getAttribute("aria-label") || e.className, e.scrollWidth, e.clientWidth])"""

# Words of one picture that lie on one another, or leave it. Formulas are left out: they are placed letter by letter.
OVERLAPPING_WORDS = """() => [...document.querySelectorAll("svg")].filter((e) => e.checkVisibility()).flatMap((svg) => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim() && !t.querySelector("tspan"));
  const boxes = texts.map((t) => t.getBoundingClientRect());
  const shared = (a, b) => Math.min(Math.min(a.right, b.right) - Math.max(a.left, b.left),
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));
  const found = texts.filter((t, i) => boxes[i].left < frame.left - 1 || boxes[i].right > frame.right + 1)
    .map((t) => ["cut", t.textContent]);
  boxes.forEach((a, i) => boxes.slice(0, i).forEach((b, j) => {
    if (shared(a, b) > 2) found.push([texts[i].textContent, texts[j].textContent]);
  }));
  return found;
})"""
