"""Lab reports made from a seed: pages whose content is known exactly. Every laboratory, person and result is invented.

- `seeds`: one number per page, from split, base seed, level and index.
- `vocabulary`: names, addresses, labels and remarks that reports are made of.
- `printing`, `results`: a laboratory's habits; one analyte's value, unit, range and mark printed by them.
- `content`: what one page says, and that as the truth.
- `fonts`, `paper`: free fonts out of packages, and paper that knows where its ink is.
- `heads`, `table`, `arrangements`, `layouts`: the ways in which laboratories arrange a page.
- `degrade`: what a scanner, a fax or a phone makes of it.
- `samples`: folders of pages with their labels, and PDFs.
"""
