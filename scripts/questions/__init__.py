"""What a served model is asked to judge its quality: probabilities of given texts, greedy answers, tasks.

Reruns the questions of every served model, and no cell. Raw answers only; `assess` judges them.
"""
