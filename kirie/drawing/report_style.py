"""The look of the report page: one style sheet, light and dark, with nothing loaded from elsewhere."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f5f2; --card: #ffffff; --ink: #23262c; --soft: #666d78; --line: #e3e2dd; --bar: #cfe0f5;
  --accent: #2f6fbe; --void: #b3b8c0; --shadow: 0 1px 2px rgba(20, 22, 30, .06), 0 6px 20px rgba(20, 22, 30, .05);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --card: #1f2228; --ink: #e8eaee; --soft: #9aa2ae; --line: #333841; --bar: #274364;
    --accent: #7fb2f0; --void: #5c636e; --shadow: none;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Hiragino Sans", "Yu Gothic UI", "Noto Sans",
    "Noto Sans CJK JP", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
header { margin-bottom: 28px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 6px; }
p { margin: 0 0 12px; }
.soft { color: var(--soft); }
.lead { max-width: 46em; }
.headlines {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(205px, 1fr)); gap: 14px; padding: 0;
  margin: 0;
}
.headlines div {
  background: var(--card); border-radius: 12px; padding: 16px 18px; box-shadow: var(--shadow);
  border: 1px solid var(--line); display: flex; flex-direction: column;
}
.headlines dt { color: var(--soft); font-size: .86rem; }
.headlines .value {
  margin: 0; font-size: 2rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
.headlines .note { margin: 4px 0 0; font-size: .82rem; line-height: 1.45; color: var(--soft); }
.headlines div:first-child .value { color: var(--accent); }
.conventions {
  margin: 18px 0 0; padding: 12px 18px; border-left: 3px solid var(--accent);
  background: var(--card); border-radius: 0 8px 8px 0; font-size: .88rem; color: var(--soft);
}
.conventions p:last-child { margin: 0; }
.scroll {
  overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  box-shadow: var(--shadow);
}
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 14px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); font-size: .84rem; }
td:first-child, th:first-child {
  text-align: left; white-space: normal; min-width: 9em; max-width: 22em; overflow-wrap: break-word;
}
tr:last-child td { border-bottom: 0; }
td.bar { min-width: 112px; }
td.bar span {
  display: block; border-radius: 5px; padding: 1px 8px;
  background: linear-gradient(to right, var(--bar) var(--share), transparent var(--share));
}
td.none { color: var(--soft); }
.name { display: flex; align-items: baseline; gap: 9px; }
.swatch {
  display: inline-block; flex: none; width: 12px; height: 12px; border-radius: 3px;
  position: relative; top: 1px; border: 1px solid rgba(128, 128, 128, .5);
}
.marks {
  display: flex; flex-wrap: wrap; gap: 4px 22px; list-style: none; padding: 0; margin: 0 0 6px; font-size: .92rem;
}
.mark {
  display: inline-block; width: 26px; height: 14px; margin-right: 8px; vertical-align: -2px; border-radius: 3px;
  background: #5a5a5a; border: 0 solid var(--mark);
}
.mark.area { background: var(--mark); }
.mark.line { border-width: 2px; }
.mark.dashes { border-width: 3px; border-style: dashed; background: color-mix(in srgb, var(--mark) 30%, #5a5a5a); }
.mark.double { border-width: 4px; border-style: double; background: color-mix(in srgb, var(--mark) 30%, #5a5a5a); }
.meanings {
  display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; font-size: .87rem;
  margin: 14px 0 0; max-width: 60em;
}
.meanings dt { font-weight: 600; }
.meanings dd { margin: 0; color: var(--soft); }
.figures { display: flex; flex-wrap: wrap; gap: 18px; align-items: flex-start; }
figure { margin: 0; }
.figures figure {
  background: #ffffff; color: #23262c; border: 1px solid var(--line); border-radius: 12px; padding: 14px;
  box-shadow: var(--shadow); flex: 1 1 440px; max-width: 100%;
}
.figures img { display: block; max-width: 100%; max-height: 620px; margin: 0 auto; }
.figures figcaption { font-size: .86rem; color: #5b626d; margin-top: 10px; }
.rows { display: grid; gap: 16px; }
.row {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 12px 14px 14px; box-shadow: var(--shadow);
}
.row h3 {
  display: flex; justify-content: space-between; gap: 16px; margin: 0 0 8px; font-size: .95rem;
  font-weight: 600;
}
.row h3 span { overflow-wrap: anywhere; }
.row h3 b { font-variant-numeric: tabular-nums; color: var(--accent); white-space: nowrap; }
.strip { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 10px; }
.strip img { display: block; width: 100%; height: auto; border-radius: 6px; }
.strip img.tiny { image-rendering: pixelated; }
.strip figcaption { font-size: .78rem; color: var(--soft); margin-top: 3px; }
@media (max-width: 640px) {
  .strip { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  main { padding: 24px 14px; }
}
@media print {
  body { background: #fff; }
  .row, .figures figure, .headlines div { break-inside: avoid; box-shadow: none; }
}
"""
