"""Can an autoencoder with a 10-number code learn the ten digits without labels?

Data flows one way: data -> augment -> models -> losses -> train -> recipes -> confusion -> experiment -> notebooks.
"""
