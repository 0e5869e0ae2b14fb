"""Records of finished runs -> one page that shows what was learnt, what was forgotten, and at what
cost.

    load            paths -> records and benchmarks, and runs that failed or are not done
    comparable      the settings behind a record, and whether two were measured alike
    aggregate       records -> points (seeds averaged), curves (learning rates), sections (targets)
    pareto          Pareto front, what is lost at equal learning, points better on both sides
    curves          through training, and by layer
    formatting      how numbers are written
    style           colours, markers and dashes
    tables, figure  a table, an interactive figure; those of a section are in
    plots             the plane, training, layers, costs
    tasks             tasks over seeds
    breakdown         kinds of tokens, worst documents
    gate_heatmap      gates over text
    benchmarks        times and memory
    verdict         sentences made from numbers
    static_figures  PNG and SVG
    markdown        the summary to paste into a model card, from `templates/`
    page            the page, from `templates/`
    build           all of it, written into a folder

Data come before layout. Nothing here needs torch, and the page loads nothing from a network.
"""
