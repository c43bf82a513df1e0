"""Every instrument on every form of model: the right number, or a refusal.

A model is a row of one of the tables in `models`, an instrument a row of the table in
`instruments`: adding either is adding a row. The truth of a model is computed once, in
float64, by `truth`: plain PyTorch and central differences, no nablab.
"""
