"""What the post published: Marton Trencseni, "Building a Pytorch Autoencoder for MNIST digits", 18 March 2021.

https://bytepawn.com and the notebook beside it at https://github.com/mtrencseni/pytorch-playground, folder
14-pytorch-autoencoder. Facts only, to be compared with.
"""

import numpy as np

# 100 epochs; rows are the digits 0 to 9, columns the most active neuron; 10,000 test images.
MATRIX = np.array(
    [
        [383, 186, 22, 326, 31, 21, 3, 0, 7, 1],
        [0, 0, 39, 3, 0, 0, 73, 4, 197, 819],
        [2, 203, 88, 171, 50, 4, 13, 256, 156, 89],
        [27, 0, 20, 882, 3, 0, 13, 21, 20, 24],
        [61, 79, 22, 0, 0, 29, 528, 47, 11, 205],
        [60, 0, 74, 494, 0, 108, 12, 4, 28, 112],
        [16, 16, 87, 1, 6, 103, 23, 50, 655, 1],
        [148, 0, 0, 0, 1, 0, 366, 7, 2, 504],
        [4, 5, 56, 594, 6, 7, 18, 16, 3, 265],
        [59, 8, 3, 29, 2, 7, 609, 1, 0, 291],
    ]
)
# Its mapping, neuron -> digit, and the accuracy on the same 10,000 images.
MAPPING = np.array([0, 2, 2, 3, 2, 5, 9, 2, 6, 1])
ACCURACY = 0.4053

# The last batch's loss after each of the 20 epochs of the earlier run.
LOSSES = [
    *[0.8514, 0.8257, 0.7773, 0.7251, 0.7215, 0.7001, 0.7056, 0.7124, 0.6659, 0.6738],
    *[0.6583, 0.7155, 0.6189, 0.6356, 0.6755, 0.6922, 0.6262, 0.6399, 0.6440, 0.6444],
]

# The author's guess of what more tweaking of network and training loop would reach.
GUESS = 2 / 3

# What others published for MNIST without labels, ten clusters: most of them trained and scored on all 70,000 images,
# several with the run or the round chosen by its accuracy.
LABEL_FREE = {
    "autoencoder + k-means": 0.81,
    "DEC": 0.84,
    "VaDE": 0.945,
    "graph clustering on raw pixels": 0.964,
    "N2D": 0.979,
    "IMSAT": 0.984,
    "IIC, mean over its heads": 0.984,
    "ConvDEC-DA": 0.985,
    "ASPC-DA": 0.988,
    "IIC, best run": 0.992,
    "SPC": 0.992,
}
