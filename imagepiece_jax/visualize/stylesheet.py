"""How does the page look? Its style sheet, for light and dark, phones and desktops."""

# name -> (light, dark)
COLOURS = {
    "ground": ("#ffffff", "#101418"),
    "raised": ("#f3f5f7", "#1a2027"),
    "text": ("#1b1f24", "#e7ebef"),
    "quiet": ("#525c67", "#a3afbb"),
    "line": ("#c9d0d7", "#3a444e"),
    "accent": ("#0b57b0", "#86bdff"),
}


def _variables(column):
    return " ".join(f"--{name}: {pair[column]};" for name, pair in COLOURS.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(0)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}
"""
    + """
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 90rem; padding: 0 1rem 4rem;
  background: var(--ground); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.6rem; margin: 1.5rem 0 0.5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.75rem; overflow-wrap: anywhere; }
h3 { font-size: 0.9rem; margin: 0 0 0.35rem; overflow-wrap: anywhere; }
p { margin: 0.5rem 0; max-width: 70ch; }
a, summary { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }

.switch {
  position: sticky; top: 0; z-index: 1; margin: 1rem -1rem; padding: 0.5rem 1rem;
  border: solid var(--line); border-width: 1px 0; background: var(--raised);
  display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem;
}
.switch legend {
  float: left; padding: 0 1.25rem 0 0; color: var(--quiet); line-height: 1.75rem;
}
.switch label {
  display: inline-flex; gap: 0.4rem; align-items: center; min-height: 1.75rem;
}
.switch input { width: 1.1rem; height: 1.1rem; margin: 0; accent-color: var(--accent); }
body:has(#show-tokens:checked) :is(.attention, .sizes),
body:has(#show-attention:checked) :is(.tokens, .sizes),
body:has(#show-sizes:checked) :is(.tokens, .attention) { display: none; }

section { scroll-margin-top: 6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
caption { text-align: left; color: var(--quiet); }
th, td { padding: 0.3rem 1rem 0.3rem 0; text-align: left; }
tr { border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }

.beside { display: grid; gap: 1.25rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(9.5rem, 45%), 1fr)); }
.cell { display: grid; grid-template-rows: subgrid; grid-row: span 3; row-gap: 0;
  align-content: start; min-width: 0; }
.cell h3 { align-self: end; }
figure { margin: 0; }
figcaption {
  margin-top: 0.3rem; color: var(--quiet); font-size: 0.85rem; line-height: 1.35;
}
figcaption b { display: block; color: var(--text); font-weight: 600; }
img { display: block; width: 100%; height: auto; }
.values { background-size: 100% 100%; }
.values img { image-rendering: pixelated; }
.none { color: var(--quiet); font-size: 0.85rem; }

details { margin: 0.75rem 0; border-top: 1px solid var(--line); }
summary { cursor: pointer; padding: 0.6rem 0; }
.strip { display: flex; gap: 0.75rem; overflow-x: auto; padding: 0.25rem 0.25rem 1rem; }
.strip figure { flex: 0 0 9.5rem; }
@media (min-width: 60rem) { .strip figure { flex-basis: 12rem; } }
"""
)
