"""The HTML template of a report."""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ color: #222; background: #fff; margin: 0 auto; max-width: 1040px; padding: 1rem;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 0; }}
h2 {{ font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ddd; }}
h3 {{ font-size: 1rem; }}
p {{ margin: .5rem 0; }}
figure {{ margin: 0; }}
figcaption {{ color: #555; font-size: .875rem; }}
.about {{ color: #555; font-size: .875rem; }}
img {{ display: block; width: 100%; height: auto; }}
.plot {{ min-width: 680px; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9375rem; margin: .75rem 0; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .25rem .75rem .25rem 0; text-align: left;
  vertical-align: top; overflow-wrap: normal; font-variant-numeric: tabular-nums; }}
pre {{ overflow-x: auto; font-size: .8125rem; }}
@media (max-width: 40rem) {{
  body {{ padding: .75rem; }}
  .plot {{ min-width: 0; }}
  table {{ font-size: .8125rem; }}
  th, td {{ padding-right: .5rem; }}
  td.long {{ overflow-wrap: anywhere; }}
  pre {{ white-space: pre-wrap; }}
}}
@media (min-width: 48rem) {{ pre {{ white-space: pre-wrap; }} }}
@media print {{
  @page {{ margin: 15mm; }}
  body {{ font-size: 10.5pt; max-width: none; padding: 0; }}
  .plot {{ min-width: 0; }}
  .wide {{ overflow: visible; }}
  pre {{ white-space: pre-wrap; }}
  h2 {{ break-after: avoid; }}
  figure, tr {{ break-inside: avoid; }}
  img {{ max-height: 80mm; width: auto; max-width: 100%; }}
  thead {{ display: table-header-group; }}
}}
</style>
{script}</head>
<body>
<h1>{title}</h1>
<p class="about">{about}</p>
{body}
</body>
</html>
"""
