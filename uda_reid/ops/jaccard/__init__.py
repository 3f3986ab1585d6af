"""k-reciprocal encoding, the Jaccard distances it gives, and re-ranking by them: sparse throughout, never N x N.

Two images are near if they have the same neighbours. An image is encoded as the weights of its expanded k-reciprocal
set, averaged over its nearest neighbours; the Jaccard distance of two images is 1 less the quotient of two sums over
all entries: of the smaller of their two weights, and of the larger. Images without a common entry are at distance
1, which is not stored.

Two published readings, which give different distances and rankings:

`zhong`: Zhong, Zheng, Cao and Li, CVPR 2017, their code and MMT's. Sets are made of k1 + 1 neighbours, the image among
    them; weights are exp(-d), d being the squared Euclidean distance of unit features over that of the farthest image.
    `zhong-squared` squares that distance again: torchreid hands squared distances to code that squares.
    Where an encoding has no entry, ours keeps the publication's quotient of sums; the codes write 1 - t / (2 - t).
`spcl`: compute_jaccard_distance of SpCL and OpenUnReID. Sets are made of k1 neighbours, weights of the plain squared
    distance.
"""

from __future__ import annotations

from uda_reid.ops.jaccard.encoding import Encoding, Reading, encode, encode_features, needed
from uda_reid.ops.jaccard.overlaps import jaccard, jaccard_strips
from uda_reid.ops.jaccard.reranking import rerank

__all__ = ["Encoding", "Reading", "encode", "encode_features", "jaccard", "jaccard_strips", "needed", "rerank"]
