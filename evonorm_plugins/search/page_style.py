"""The style sheet of a search's page, light and dark, wide and narrow."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6675; --line: #dde2e9;
  --back: #ffffff; --card: #f6f8fa; --mark: #30638e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #343c48;
  --back: #14181e; --card: #1c222a; --mark: #7fb2dd; }
  img { filter: invert(0.92) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1.25rem 4rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
p { margin: .5rem 0; }
p.soft, td.soft, figcaption, small { color: var(--soft); }
.tiles { display: grid; gap: .75rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(7.1rem, 1fr)); }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .6rem .8rem; font-size: .85rem; color: var(--soft); }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3; color: var(--ink); }
.winner { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: 1rem; margin: 1rem 0; overflow-x: auto; text-align: center; font-size: 1.35rem; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; min-width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; text-align: right; vertical-align: middle;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; font-size: .85rem; color: var(--soft); }
th.left, td.left { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; }
math { font-size: 1.05em; math-style: normal; }
math mtext { font-size: .75em; }
code { font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.command { display: block; margin: .5rem 0; padding: .4rem .7rem;
  overflow-wrap: anywhere; background: var(--card); border-radius: .35rem; color: var(--soft); }
dl { columns: 24rem; column-gap: 2.5rem; margin: .75rem 0; }
dl div { display: flex; gap: 1rem; justify-content: space-between; padding: .2rem 0;
  border-bottom: 1px solid var(--line); break-inside: avoid; }
dt { color: var(--soft); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; min-width: 40%;
  font: .85rem/1.7 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: .35rem; }
.figures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
figcaption { font-size: .85rem; margin-top: .35rem; }
.trunk, .trunk ul { list-style: none; margin: 0; padding: 0; }
.trunk { margin-left: .3rem; border-left: 2px solid var(--mark); }
.trunk > li { position: relative; padding: .2rem 0 .5rem 1.1rem; }
.trunk > li::before { content: ""; position: absolute; left: -.42rem; top: .85rem; width: .7rem;
  height: .7rem; border-radius: 50%; background: var(--mark); }
.trunk ul { margin: .2rem 0 0 .3rem; border-left: 1px solid var(--line); }
.trunk ul li { position: relative; padding: .1rem 0 .1rem 1.1rem; }
.trunk ul li::before { content: ""; position: absolute; left: 0; top: 1rem; width: .7rem;
  border-top: 1px solid var(--line); }
.trunk div { overflow-x: auto; padding: .2rem 0; white-space: nowrap; }
.bar { display: inline-block; height: .6rem; border-radius: .2rem; background: var(--mark);
  vertical-align: baseline; }
"""
