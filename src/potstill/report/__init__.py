"""The page that a person looks at, and the student's model card. Importing this loads neither torch nor altair.

stage.py         the stage: reads artifacts, writes report.html and README.md
findings.py      what was found, read from the artifacts of a run
figures.py       numbers as a person reads them
terminology.py   what models and targets are called, by task
verdict.py       two sentences: what was kept and lost, and what the teacher was worth
distribution.py  how the loss is spread over tokens
palette.py       colour, dash and shape of each model, the same in every chart
charts.py        the charts, as altair specifications
svg.py           a specification as static SVG without script, style or link
sections.py      tables and texts, ready for the template
measured.py      the sections of measures, each finding drawn by its type
entries.py       the worst documents and examples
plots.py         which charts are drawn, of what
drafting.py      the section on speculative decoding
comparison.py    several runs on one page
page.py          report.html
card.py          README.md
"""
