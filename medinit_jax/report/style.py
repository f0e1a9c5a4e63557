"""The page's style sheet: one column, two color schemes, no fonts or files from elsewhere."""

# Starts of one figure differ in color or, within a group of the paper's, in shape (`looks`).
# The four first starts use Okabe and Ito's colors (blue, vermilion, bluish green, reddish purple),
# darkened or lightened until text in them has a contrast of 4.5 on the page's ground.
CSS = """
:root {
  color-scheme: light dark;
  --ground: #fcfbf9; --sheet: #ffffff; --ink: #1f2328; --soft: #5b6169; --rule: #e4e1db;
  --hyper: #0a63a8; --random: #b34700; --matched: #00735a; --untrained: #9a3d79;
  --rotnet: #7a5c00; --imagenet: #5d6470; --probe: #4c43b8;
  --byol: #a3263f; --eyepacs: #0a6b85; --multitask: #4d6a00;
  --alarm: #9b1c1c; --alarm-ground: #fdf1ef; --shade: rgb(0 0 0 / .13);
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --serif: Charter, "Iowan Old Style", "Source Serif 4", Georgia, "Times New Roman", serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15181c; --sheet: #1c2025; --ink: #e7e5e1; --soft: #a3a9b1; --rule: #31363d;
    --hyper: #6cb4f0; --random: #f2975c; --matched: #45c9a2; --untrained: #e39ac6;
    --rotnet: #d8b44a; --imagenet: #aab2bf; --probe: #a9a2ff;
    --byol: #ff9aa8; --eyepacs: #5cc8e0; --multitask: #a8c957;
    --alarm: #ffb4a8; --alarm-ground: #3a1f1c; --shade: rgb(0 0 0 / .6);
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 17px/1.6 var(--sans); font-variant-numeric: lining-nums; }
main { max-width: 900px; margin: 0 auto; padding: 56px 30px 80px; }
h1, h2 { font-family: var(--serif); font-weight: 600; line-height: 1.18; text-wrap: balance;
  letter-spacing: -0.01em; }
h1 { font-size: 42px; margin: 10px 0 20px; }
h2 { font-size: 27px; margin: 0 0 10px; }
h3 { font-size: 16px; font-weight: 600; margin: 28px 0 6px; line-height: 1.35; }
section { margin-top: 60px; padding-top: 30px; border-top: 1px solid var(--rule); }
p, ul.prose { max-width: 680px; margin: 0 0 14px; text-wrap: pretty; }
.kicker { font-size: 14px; color: var(--soft); margin: 0; overflow-wrap: anywhere; }
.lead { font-size: 19px; line-height: 1.55; }
.absent { color: var(--soft); font-style: italic; }
.alarm { background: var(--alarm-ground); color: var(--alarm); border-left: 4px solid currentColor;
  padding: 12px 18px; font-weight: 600; max-width: none; }
ul.prose { padding-left: 20px; } ul.prose li { margin-bottom: 8px; }
.terms { display: grid; grid-template-columns: 190px minmax(0, 1fr); gap: 0 26px; margin: 10px 0;
  font-size: 16px; line-height: 1.5; }
.terms dt { font-weight: 600; padding: 8px 0; } .terms dd { margin: 0; padding: 8px 0;
  max-width: 620px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 0 26px; margin: 34px 0 0; }
.tile { border-top: 2px solid var(--ink); padding: 10px 0 4px; }
.tile b { display: block; font: 600 30px/1.15 var(--serif); font-variant-numeric: lining-nums;
  white-space: nowrap; }
.tile span { display: block; font-size: 14px; line-height: 1.4; color: var(--soft);
  margin-top: 4px; }
figure { margin: 18px 0 0; }
figcaption { font-size: 15px; line-height: 1.5; color: var(--soft); max-width: 680px;
  margin-top: 8px; }
svg { display: block; width: 100%; height: auto; overflow: visible; --c: var(--soft); }
.narrow { display: none; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr));
  gap: 30px 34px; margin-top: 12px; }
.panel h3 { margin: 0; overflow-wrap: anywhere; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 18px 0 14px;
  padding: 0; font-size: 14.5px; }
.legend li { display: flex; align-items: center; gap: 8px; }
.legend .swatch { width: 30px; height: 14px; flex: none; }
svg text { font: 12.5px var(--sans); fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .tick, svg .label, svg .note { fill: var(--soft); }
svg .row { font-size: 13.5px; } svg .value { font-weight: 600; font-size: 13.5px; }
svg .value.small { font-size: 12.5px; }
svg .halo { paint-order: stroke; stroke: var(--ground); stroke-width: 4px; stroke-linejoin: round; }
.s-hyper, .s-swcl { --c: var(--hyper); } .s-random { --c: var(--random); }
.s-matched { --c: var(--matched); } .s-untrained { --c: var(--untrained); }
.s-rotnet { --c: var(--rotnet); } .s-imagenet { --c: var(--imagenet); }
.s-probe, .s-odir { --c: var(--probe); }
.s-simclr, [class*="s-swcl_no_"] { --c: var(--matched); }
.s-swcl_image, [class*="s-swcl_only_"] { --c: var(--untrained); }
.s-dino, .s-dino_official { --c: var(--rotnet); } .s-bit_s, .s-bit_m { --c: var(--imagenet); }
.s-eyepacs, .s-swcl_t03, .s-swcl_t05 { --c: var(--eyepacs); }
.s-byol { --c: var(--byol); } .s-multitask { --c: var(--multitask); }
.t-train { --c: var(--ink); } .t-quiet { --c: var(--soft); } .t-val { --c: var(--hyper); }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1; }
.zero { stroke: var(--ink); stroke-width: 1.2; }
.reference { stroke: var(--soft); stroke-width: 1.1; stroke-dasharray: 5 4; }
.event { stroke: var(--random); stroke-width: 1.2; stroke-dasharray: 2 3; }
.line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round;
  stroke-linecap: round; }
.line.s-hyper, .line.s-swcl { stroke-width: 2.8; }
.line.s-matched, .line.s-simclr { stroke-dasharray: 8 5; stroke-linecap: butt; }
.line.s-untrained, .line.s-swcl_image { stroke-dasharray: 2 5; }
.thin { fill: none; stroke: var(--c); stroke-width: 1.1; opacity: .55; }
.faint { fill: none; stroke: var(--c); stroke-width: 1; opacity: .35; }
.band { fill: var(--c); opacity: .11; }
.mark { fill: var(--c); stroke: var(--ground); stroke-width: 1; }
.interval { stroke: var(--c); stroke-width: 2.4; } .cap { stroke: var(--c); stroke-width: 1.6; }
.leader { stroke: var(--c); stroke-width: 1; opacity: .6; }
svg .name { fill: var(--c); font-weight: 600; } svg .name.t-quiet { font-weight: 400; }
.b-hyper { fill: var(--hyper); opacity: .3; } .b-untrained { fill: var(--untrained); opacity: .75; }
.dot { fill: var(--hyper); stroke: var(--ground); stroke-width: .5; }
.least { stroke: var(--hyper); stroke-width: 2.2; }
.table { margin: 24px 0; } .caption { font-size: 15px; font-weight: 600; margin: 0 0 6px; }
.scroll { overflow-x: auto; border-bottom: 1px solid var(--rule);
  background: linear-gradient(to right, var(--ground) 40%, transparent) left / 40px 100% local,
    linear-gradient(to left, var(--ground) 40%, transparent) right / 40px 100% local,
    linear-gradient(to right, var(--shade), transparent) left / 14px 100% scroll,
    linear-gradient(to left, var(--shade), transparent) right / 14px 100% scroll;
  background-repeat: no-repeat; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--hyper);
  outline-offset: 2px; }
table { border-collapse: collapse; font-size: 14.5px; line-height: 1.4; min-width: 100%;
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: 7px 16px 7px 0; text-align: right; white-space: nowrap; font-weight: 400;
  border-top: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 2px; }
thead th { color: var(--soft); font-size: 13.5px; vertical-align: bottom; }
th.text, td.text { text-align: left; }
.facts { display: grid; grid-template-columns: minmax(150px, max-content) 1fr; gap: 0 26px;
  margin: 16px 0; font-size: 14.5px; line-height: 1.45; }
.facts dt { color: var(--soft); padding: 4px 0; overflow-wrap: anywhere; }
.facts dd { margin: 0; padding: 4px 0; overflow-wrap: anywhere; }
details { margin: 14px 0; } summary { cursor: pointer; font-size: 15px; color: var(--soft);
  padding: 6px 0; }
.gallery { display: grid; grid-template-columns: repeat(2, 1fr); gap: 26px 34px;
  margin-top: 20px; }
.card { display: grid; grid-template-columns: 1fr 4.2fr; gap: 14px; align-items: start; }
.card figure { margin: 0; } .card figcaption { font-size: 13px; margin-top: 3px; }
.card img { display: block; width: 100%; height: auto; image-rendering: pixelated;
  border-radius: 3px; background: #000; }
.views { display: grid; grid-template-columns: repeat(4, 1fr); gap: 8px; }
.more { color: var(--soft); font-size: 12.5px; } td details { margin: 0; }
td details summary { font-size: 12.5px; padding: 0; } td .runs { display: block;
  min-width: 74px; max-width: 130px; margin-left: auto; white-space: normal; font-size: 12.5px; }
.head { display: inline-block; white-space: normal; max-width: 92px; }
h2 + .panel, h2 + .panels { margin-top: 20px; }
.panel + p, .panels + p { margin-top: 16px; }
td .reason { color: var(--soft); font-size: 12.5px; white-space: normal; }
.maps { overflow-x: auto; } .maps table { width: auto; min-width: 0; }
.maps td, .maps th { padding: 3px 6px 3px 0; border: 0; text-align: left; }
.maps img { display: block; width: 84px; height: 84px; image-rendering: pixelated;
  border-radius: 3px; }
.photograph { margin: 0; } .photograph img { display: block; width: 100%; height: auto; }
footer { margin-top: 60px; color: var(--soft); font-size: 14px; }
@media (max-width: 700px) {
  body { font-size: 16px; } main { padding: 28px 18px 60px; }
  h1 { font-size: 29px; } h2 { font-size: 23px; } .lead { font-size: 17px; }
  section { margin-top: 42px; padding-top: 24px; }
  .wide { display: none; } .narrow { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 18px 22px; } .tile b { font-size: 26px; }
  .gallery { grid-template-columns: 1fr; } .panels { grid-template-columns: 1fr; }
  .terms { grid-template-columns: 1fr; } .terms dt { padding-bottom: 0; }
  .terms dd { padding-top: 2px; }
  th.wrap { white-space: normal; min-width: 7em; }
  .facts { grid-template-columns: 1fr; } .facts.short { grid-template-columns: 1fr 1fr; }
  .facts dt { padding-bottom: 0; }
  .facts dd { padding-top: 0; padding-bottom: 8px; }
}
@media print { section { break-inside: avoid; border-color: #999; } .scroll { overflow: visible; } }
"""
