"""Licences, terms, provenance and the gate. Reads files alone; imports no torch.

sources.toml     the table: what each licence and each provider's terms say
texts.json       digests of the texts that were read, and hashes of their word sequences
table.py         the table, and the answer for one source, route and purpose
fingerprints.py  which known text a text is
recognise.py     the licence of a model, an endpoint, a data set
provenance.py    what a student was made from, carried from student to student
gate.py          the rulings on a recipe
duties.py        notices, names, copies and restrictions, carried out in an export
terms.py         the section of a card
page.py          the table as a page of the documentation
"""
