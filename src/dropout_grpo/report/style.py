"""The page's style sheet: figures in one column on a phone and two on a desk; light or dark as the system is.

`--arm-0` to `--arm-3` are the colours of the figures (svg.py). The contrast of text is 4.5:1 or more in both.
"""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fdfcfa; --card: #ffffff; --ink: #1c2024; --muted: #5d666f; --rule: #d9dcdf;
  --arm-0: #0a6f69; --arm-1: #b3541e; --arm-2: #5b4bc4; --arm-3: #8a6d00;
  --good: #0a6f69; --bad: #b03a2e; --tint: #e6f2f0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f23; --ink: #e8eaec; --muted: #a3acb5; --rule: #363c42;
    --arm-0: #4cc3b5; --arm-1: #f0995f; --arm-2: #a99df5; --arm-3: #d9b93b;
    --good: #4cc3b5; --bad: #f08a7e; --tint: #1b302e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main, footer { max-width: 66rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
main { padding-top: 2.5rem; }
footer { padding-top: 1.5rem; padding-bottom: 3rem; color: var(--muted); font-size: .85rem; }
header p { margin: 0; color: var(--muted); overflow-wrap: anywhere; }
h1 { margin: 0 0 .25rem; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.015em; }
h2 { margin: 0 0 .35rem; font-size: 1.25rem; letter-spacing: -.01em; }
h3 { margin: 0; font-size: 1rem; }
section { margin-top: 2.75rem; }
section > p { margin: 0 0 1rem; max-width: 44rem; color: var(--muted); }

.headline { display: grid; gap: 1.5rem 2rem; align-items: center; margin-top: 1.75rem; padding: 1.5rem;
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }
.headline > * { min-width: 0; }
.headline .gain { margin: 0; color: var(--ink); font-size: clamp(1.4rem, 8vw, 2.5rem); font-weight: 650;
  line-height: 1.15; letter-spacing: -.03em; white-space: nowrap; }
.headline .gain .arrow { color: var(--muted); font-weight: 400; }
.headline .gain .after { color: var(--arm-0); }
.headline p { margin: .6rem 0 0; color: var(--muted); }
.headline p strong { color: var(--ink); }

.about { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .35rem 2rem;
  margin: 1.25rem 0 0; font-size: .9rem; }
.about div { display: grid; grid-template-columns: 6rem 1fr; min-width: 0; }
.about dt { color: var(--muted); }
.about dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }

.figures { display: grid; gap: 1.25rem; }
figure { display: flex; flex-direction: column; margin: 0; padding: 1rem; min-width: 0;
  background: var(--card); border: 1px solid var(--rule); border-radius: 12px; }
figure svg { margin-top: auto; }
figcaption { margin: .15rem 0 .5rem; color: var(--muted); font-size: .9rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit !important; }

.scroll { overflow-x: auto; }
.scroll ~ .scroll { margin-top: 1.75rem; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--arm-0); outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-size: .95rem; }
caption { padding-bottom: .5rem; text-align: left; color: var(--muted); font-size: .9rem; }
th, td { padding: .45rem .75rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
tbody th { min-width: 7rem; white-space: normal; overflow-wrap: anywhere; }
thead th { color: var(--muted); font-weight: 500; white-space: normal; }
tbody th { font-weight: 600; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts th { width: 35%; font-weight: 400; color: var(--muted); vertical-align: top; }
table.facts caption, table.facts thead { position: absolute; clip-path: inset(50%); }
table.read th, table.read td { padding: .3rem .5rem; text-align: left; white-space: normal; vertical-align: top; }
table.read th:first-child { min-width: 5rem; padding-left: 0; }
table.read { margin-top: .75rem; font-size: .85rem; }
table.read caption { color: var(--ink); }
.note { margin-top: .75rem; font-size: .9rem; }

.flips { display: grid; gap: 1.25rem; margin: 0; padding: 0; list-style: none; }
.flips > li { min-width: 0; padding: 1rem 1.25rem; background: var(--card); border: 1px solid var(--rule);
  border-left: 4px solid var(--good); border-radius: 12px; }
.flips > li.lost { border-left-color: var(--bad); }
.flips blockquote { margin: .35rem 0 .75rem; overflow-wrap: anywhere; }
.badge { color: var(--good); font-weight: 600; font-size: .9rem; }
.lost .badge { color: var(--bad); }
.votes { display: grid; grid-template-columns: 4rem 1fr; gap: .5rem; align-items: baseline;
  margin: .4rem 0 0; }
.votes dt { color: var(--muted); font-size: .9rem; }
.votes dd { margin: 0; display: flex; flex-wrap: wrap; gap: .35rem; min-width: 0; }
.vote { padding: 0 .5rem; border: 1px solid var(--rule); border-radius: 99px; font-size: .9rem;
  overflow-wrap: anywhere; }
.vote.right { background: var(--tint); border-color: var(--good); font-weight: 600; }
.plain { min-width: 2.25rem; font-weight: 600; overflow-wrap: anywhere; }
.plain.right { color: var(--good); }

.filter { display: flex; flex-wrap: wrap; gap: .6rem 1rem; margin-bottom: .75rem; }
.filter label { display: flex; flex-direction: column; min-width: 0; color: var(--muted); font-size: .85rem; }
.filter label[hidden] { display: none; }
.filter label:first-child { flex: 1 1 16rem; }
.filter input, .filter select, #problem-more { max-width: 100%; min-height: 2.4rem; padding: .3rem .6rem;
  color: var(--ink); background: var(--card); border: 1px solid var(--muted); border-radius: 8px; font: inherit; }
.filter :focus-visible, #problem-more:focus-visible { outline: 2px solid var(--arm-0); outline-offset: 2px; }
#problem-more { margin-top: .75rem; cursor: pointer; }
details.problem { margin-top: .4rem; padding: .5rem .75rem; }
details.problem p { margin: .6rem 0; overflow-wrap: anywhere; }
.problem summary { display: flex; gap: .35rem; font-weight: 400; }
.problem .question { min-width: 0; margin-left: .35rem; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.problem[open] .question { white-space: normal; overflow-wrap: anywhere; }
.mark { color: var(--bad); font-weight: 700; }
.mark.right { color: var(--good); }
.votes.wide { grid-template-columns: minmax(4rem, max-content) 1fr; }
.votes dt { overflow-wrap: anywhere; }

details { margin-top: 1rem; padding: .75rem 1rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 12px; }
summary { cursor: pointer; font-weight: 600; }
details table { margin-top: .75rem; font-size: .85rem; }

@media (max-width: 40rem) {
  table.stack thead { position: absolute; clip-path: inset(50%); }
  table.stack caption, table.stack tbody, table.stack tr, table.stack th, table.stack td { display: block; }
  table.stack tr { padding: .5rem 0; border-bottom: 1px solid var(--rule); }
  table.stack tbody th, table.stack td { padding: .1rem 0; border: 0; }
  table.stack td { display: flex; justify-content: space-between; gap: 1rem; white-space: normal; text-align: right; }
  table.stack td::before { content: attr(data-label); color: var(--muted); text-align: left; }
  table.stack td:empty { display: none; }
}
@media (min-width: 54rem) {
  .headline { grid-template-columns: 5fr 6fr; padding: 2rem; }
  .figures, .flips { grid-template-columns: 1fr 1fr; }
  .figures > :only-child { grid-column: 1 / -1; max-width: 36rem; }
}
"""
