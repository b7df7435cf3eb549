# SPDX-License-Identifier: Apache-2.0
"""Small templates, one per rule of the language, which make_chat_vectors.py renders by jinja2."""

VARIABLES = {
    "s": "  Hello, Wörld 🙂\n", "empty": "", "t": "a-b--c", "n": 7, "f": 2.5, "yes": True, "no": False, "nil": None,
    "xs": [3, 1, 2], "words": ["b", "a", "Über"], "d": {"k": 1, "items": [1], "z": {"y": "deep"}},
    "users": [{"name": "Ann", "age": 30, "on": True}, {"name": "Bob", "age": 25, "on": False}, {"name": "Cy"}],
    "quote": "it's \"so\"\\\t", "lines": "a\nb\r\nc\n\nd",
}

SNIPPETS = [
    # printing
    "{{ n }} {{ f }} {{ yes }} {{ nil }} {{ missing }}|{{ xs }} {{ d }} {{ words }}",
    "{{ 1e16 }} {{ 1e15 }} {{ 0.0001 }} {{ 0.00001 }} {{ 1.0 }} {{ 1_000 }} {{ -0.0 }} {{ 1e100 }}",
    "{{ (1,) }} {{ (1, 'a') }} {{ [] }} {{ {} }} {{ () }} {{ 'x', 'y' }}", "{{ [quote] }} {{ ['it\\'s'] }} {{ ['\\x01\\x7f'] }}",
    "{{ 'a' 'b' \"c\" }} {{ '\\n\\t\\\\\\'\\u00e9\\x41\\101\\q' }}",
    # operators
    "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}",
    "{{ 1 + 2 * 3 - 4 }} {{ (1 + 2) * 3 }} {{ 1 ~ 2 ~ 'x' ~ nil }} {{ 'a' * 3 }} {{ 2 * 'ab' }} {{ 'x' * -1 }}",
    "{{ [1] + [2] }} {{ (1,) + (2,) }} {{ yes + yes }} {{ -n|abs }} {{ +n }} {{ 2 ** 3 ** 2 }} {{ -2 ** 2 }}",
    "{{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ yes == 1 }} {{ '1' == 1 }} {{ nil == no }} {{ [1, [2]] == [1, [2]] }}",
    "{{ 'ell' in s }} {{ 'x' not in s }} {{ 1 in xs }} {{ 'k' in d }} {{ 9 not in xs }} {{ 'k' in missing }} {{ not 'k' in d }}",
    "{{ yes and 'a' }} {{ no or 'b' }} {{ '' or nil }} {{ not yes }} {{ not not 1 }} {{ yes and no or yes }} {{ missing == missing2 }}",
    "{{ 'a' if yes else 'b' }} {{ 'a' if no }}|{{ 'a' if no else 'b' if no else 'c' }}", "{{ 1 if missing else 2 }}",
    # parts
    "{{ s[0] }}{{ s[-2] }}{{ s[9] }}{{ s[99] }} {{ xs[0] }} {{ xs[-1] }} {{ xs[9] }} {{ d.k }} {{ d['k'] }} {{ d['items'] }} {{ d.z.y }} {{ d.q }}",
    "{{ s[2:7] }} {{ s[::-1] }} {{ s[-4:] }} {{ s[:-1] }} {{ s[1:9:3] }} {{ xs[1:] }} {{ xs[::-1] }} {{ xs[5:] }} {{ xs[-2:-1] }} {{ s[nil:3] }} {{ xs[::-2] }}",
    "{{ users.0.name }} {{ users[1]['name'] }} {{ s.foo }} {{ nil.foo }} {{ xs['a'] }}",
    "{{ missing.a }}", "{{ 1 + 2 ~ 3 }}", "{{ d.q.r }}", "{{ missing + 'a' }}", "{{ 'a' + 1 }}", "{{ 1 < 'a' }}", "{{ 1 in 2 }}", "{{ 1 / 0 }}", "{{ -missing }}",
    # filters
    "[{{ s|trim }}] [{{ '--a-'|trim('-') }}] [{{ n|trim }}] [{{ missing|trim }}]", "{{ s|length }} {{ xs|count }} {{ d|length }} {{ missing|length }}",
    "{{ xs|join(', ') }} {{ words|join }} {{ users|join('/', attribute='name') }} {{ t|join('.') }} {{ 'ab'|list }}",
    "{{ missing|default('x') }} {{ empty|default('x') }} {{ empty|default('x', true) }} {{ nil|default('x') }} {{ no|d('x', boolean=True) }} [{{ missing|default }}]",
    "{{ 'abC'|upper }} {{ 'ABC dEf'|lower }} {{ 'hELLO wORLD'|capitalize }} {{ 'hello wORLD-x (y'|title }} {{ n|upper }} {{ '日本a'|upper }}",
    "{{ t|replace('-', '+') }} {{ t|replace('-', '', 2) }} {{ t|replace('q', 'r') }} {{ n|replace(7, 8) }} {{ t.replace('--', '=') }} {{ t.replace('-', '', 1) }}",
    "{{ xs|first }} {{ xs|last }} {{ s|trim|first }} {{ []|first }} {{ d|first }} {{ 'abc'|last }} {{ []|last is defined }}",
    "{{ users|map(attribute='name')|list }} {{ users|map(attribute='age', default=0)|join(',') }} {{ words|map('upper')|list if no }} {{ xs|map('string')|list }} {{ [' a ', 'b ']|map('trim')|join }}",
    "{{ users|selectattr('on')|map(attribute='name')|join }} {{ users|rejectattr('on')|map(attribute='name')|join }} {{ users|selectattr('age', 'defined')|list|length }}",
    "{{ users|selectattr('name', 'equalto', 'Bob')|list|length }} {{ users|selectattr('name', '==', 'Bob')|first }} {{ users|selectattr('name', 'in', ['Ann', 'Cy'])|map(attribute='name')|list }}",
    "{{ xs|select('odd')|list }} {{ xs|reject('gt', 1)|list }} {{ ['', 'a', nil]|select|list }} {{ xs|select('divisibleby', 3)|list }}",
    "{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}{% for k, v in d.items() %}{{ loop.index }}{{ k }}{% endfor %}{% for k, v in missing|items %}x{% endfor %}",
    "{{ d|tojson }} {{ users|tojson(indent=2) }} {{ quote|tojson }} {{ words|tojson(ensure_ascii=true) }} {{ '🙂\\x7f'|tojson(ensure_ascii=True) }}",
    "{{ []|tojson(indent=4) }} {{ {'a': [], 'b': {}}|tojson(indent=1) }} {{ {'b': 1, 'a': (1, 2.0, nil, yes)}|tojson(sort_keys=true) }} {{ xs|tojson(separators=(',', ':')) }} {{ xs|tojson(indent='--') }}",
    "{{ missing|tojson }}", "{{ '42'|int }} {{ '4.7'|int }} {{ 'x'|int }} {{ 'x'|int(9) }} {{ 2.9|int }} {{ yes|int }} {{ '1.5'|float }} {{ 'x'|float }} {{ 3|float }} {{ nil|int(5) }} {{ ' 12 '|int }}",
    "{{ xs|string ~ 'x' }} {{ 3|string|length }} {{ 'a'|safe }} {{ -3|abs }} {{ -2.5|abs }} {{ 'abc'|reverse }} {{ xs|reverse|list }}",
    "{{ '%s has %d'|format('x', 3) }} {{ '100%%'|format }}", "{{ lines|indent }}|{{ lines|indent(2, true) }}|{{ lines|indent(1, blank=true) }}|{{ 'a\n'|indent('>') }}",
    # methods
    "{{ t.split('-') }} {{ t.split('-', 1) }} {{ t.split('--')[-1] }} {{ ' a  b '.split() }} {{ ' a  b c '.split(none, 1) }} {{ ''.split() }} {{ ''.split('x') }} {{ t.rsplit('-', 1) }} {{ 'aaa'.rsplit('aa') }}",
    "[{{ s.strip() }}] [{{ s.lstrip() }}] [{{ s.rstrip() }}] {{ 'xaxbx'.strip('x') }} {{ 'xyab'.lstrip('yx') }} {{ '\\u3000a\\u2028'.strip() }}",
    "{{ t.startswith('a-') }} {{ t.endswith(('x', 'c')) }} {{ t.startswith('') }} {{ 'a'.upper() }} {{ 'A'.lower() }} {{ 'aB'.capitalize() }} {{ t.find('b') }} {{ t.find('q') }} {{ t.count('-') }} {{ '🙂b'.find('b') }}",
    "{{ '-'.join(words) }} {{ lines.splitlines() }} {{ t.removeprefix('a') }} {{ t.removesuffix('c') }} {{ d.get('k') }} {{ d.get('q') }} {{ d.get('q', 5) }} {{ d.keys()|list }} {{ d.values()|list|length }}",
    "{{ missing.strip() }}", "{{ nil.strip() }}", "{{ n.items() }}", "{{ ''.split('') }}",
    # tests
    "{{ s is string }} {{ n is string }} {{ d is mapping }} {{ xs is iterable }} {{ s is iterable }} {{ n is iterable }} {{ xs is sequence }} {{ nil is none }} {{ missing is none }} {{ missing is defined }} {{ missing is undefined }}",
    "{{ n is number }} {{ yes is number }} {{ n is integer }} {{ yes is integer }} {{ f is float }} {{ yes is boolean }} {{ yes is true }} {{ no is false }} {{ 1 is true }} {{ n is odd }} {{ n is even }} {{ n is divisibleby 7 }} {{ n is not divisibleby(2) }}",
    "{{ n is eq 7 }} {{ n is equalto(8) }} {{ n is ge 7 }} {{ n is lt 7 }} {{ 1 is in xs }} {{ range is callable }} {{ strftime_now is defined }} {{ not s is string }} {{ missing is iterable }} {{ missing is sequence }} {{ s is not none and n is odd }}",
    # statements
    "{% for x in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}",
    "{% for x in [] %}a{% else %}none{% endfor %}{% for x in missing %}a{% else %}none{% endfor %}{% for c in 'añ🙂' %}<{{ c }}>{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% for x in xs if x > 1 %}{{ x }}{{ loop.length }}{% endfor %}{% for x in xs if x > 9 %}{% else %}none{% endfor %}{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}{% for (a, b) in d.items() %}{{ a }}{% endfor %}",
    "{% for x in range(5) %}{% if x == 1 %}{% continue %}{% endif %}{% if x == 3 %}{% break %}{% endif %}{{ x }}{% endfor %}{{ range(2, 9, 3)|list }} {{ range(5, 0, -2)|list }} {{ range(0)|list }}",
    "{% for x in xs %}{% for y in words %}{{ loop.depth }}{{ y }}{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% set a = 1 %}{% for x in xs %}{% set a = a + x %}{{ a }}{% endfor %}{{ a }}{% if yes %}{% set a = 9 %}{% endif %}{{ a }}{% set b, c = 1, 2 %}{{ b }}{{ c }}",
    "{% set ns = namespace(a=1, b='x') %}{% for x in xs %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c }}{{ ns['a'] }}{{ namespace(q=1).q }} {{ dict(a=1, b=2) }}",
    "{% set block %}  a {{ n }}\n{% endset %}[{{ block }}]{% set up | upper | trim %} x {% endset %}[{{ up }}]{% filter upper %}abc{{ n }}{% endfilter %}",
    "{% macro f(a, b='d', c=a) %}({{ a }},{{ b }},{{ c }}){% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(b=3, a=4) }}{{ f() }}{{ f(1)|length }}{{ f('x') ~ 'y' }}",
    "{% set v = 1 %}{% macro f() %}{{ v }}{{ w }}{% endmacro %}{% set w = 2 %}{% for v in [5] %}{{ f() }}{% endfor %}{% macro g(k) %}{% if k %}{{ k }}{{ g(k - 1) }}{% endif %}{% endmacro %}{{ g(4) }}",
    "{% if no %}a{% elif n == 7 %}b{% elif yes %}c{% else %}d{% endif %}{% if missing %}x{% endif %}{% if [] %}x{% elif {} %}y{% else %}z{% endif %}",
    "{% with a = 1, b = n %}{{ a }}{{ b }}{% set c = 3 %}{% endwith %}{{ a }}{{ c }}{% generation %}g{{ n }}{% set q = 1 %}{% endgeneration %}{{ q }}",
    "{{ raise_exception('no: ' ~ n) }}", "{{ strftime_now('%d %b %Y') }}",
    # white space
    "a\n  {% if yes %}\n  b\n  {% endif %}\nc\n", "a  {%- if yes -%}  b  {%- endif -%}  c", "  {%+ if yes %}x{% endif %}\n  {% if yes +%}\ny{% endif %}",
    "a {# c #}\nb\n  {# c #}\nc {#- d -#} e {# x +#}\nf", "  {{ n }}\n  {{- n -}}  \n x", "{% raw %}\n{{ x }} {% if %}{% endraw %}\nz", "a {%- raw -%} {{ }} {%- endraw -%} b\n\n",
    "x\r\ny\rz\r\n", "{% for x in xs %}\n{{ x }}\n{% endfor %}\n\nend\n", "{{ '}}' }} {{ {'a': {'b': 1}}['a'] }} {{ \"%}\" }}", "\u3000{% if yes %}x{% endif %}", "text { not } a tag {{n}}{n}",
    "{{-5}} {{- 5 }}{%-if yes-%} a {%-endif-%} ", "{% if yes %}a{% endif %}\n  {% if yes %}b{% endif %}  \n",
]
