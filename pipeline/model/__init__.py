"""The conditional VAE: q(z∣x,y), p(x∣z,y) and p(z∣y).

Imports base, data.
"""
