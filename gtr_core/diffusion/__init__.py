"""The diffusion head of a token and its reverse process, with CUDA graphs and Triton kernels."""
