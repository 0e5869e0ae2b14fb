"""Records of finished runs -> one page that shows what was learnt, what was forgotten, and at what
cost.

    collect.py     paths -> records, and cells that failed or are not done
    settings.py    the settings behind a record, and whether two were measured alike
    points.py      records -> points (seeds averaged), curves (learning rates, shares) and sections (target languages)
    fronts.py      points -> Pareto front, forgetting at equal learning, who is better on both sides
    verdict.py     the result in two sentences
    tasks.py       tasks over seeds: table and sentences
    numbers.py     how numbers are written
    looks.py       a colour, a marker and a dash for each curve
    plots.py       interactive figures
    pictures.py    the same as PNG and SVG
    markdown.py    the summary to paste into a model card
    page.py        the page, from `page.html.jinja`, `page.css` and `page.js`
    command.py     all of it, written into a folder

Data first, looks second; nothing here needs torch, and the page asks nothing of any network.
"""
