"""Can an autoencoder with a 10-number code learn the ten digits without labels?

Data flows one way: data -> augment -> models -> losses -> pseudo_labels -> train -> recipes -> experiment ->
notebooks.
"""
