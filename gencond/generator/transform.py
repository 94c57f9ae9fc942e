"""A generator made like an image codec: whole numbers for each square, a linear transform, and a small network."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int64
from torch import Tensor, nn

from gencond.generator.backbone import Backbone


class TransformGenerator(Backbone):
    """(latents, labels) -> images in [-1, 1]: squares side by side, each a linear function of its piece of the latent.

    Three convolutions, which know the class, then mend what the squares leave at their borders and what rounding took.
    Latents are whole numbers (`codes.whole_numbers`), most of them 0: one or two thousand bits hold a photograph of 32
    pixels.

    Args:
        sample_size: side of the images in pixels.
        out_channels: 1 grey, 3 RGB.
        num_class_embeds: number of classes.
        latent_dim: length of a latent, a multiple of the number of squares. It lies as feature maps do: a number
            of each square, then the next of each.
        square: side of the squares in pixels.
        width: channels of the convolutions.
    Raises:
        ValueError: sizes that do not divide, or more numbers for a square than it has.
    Source: the transform of Karhunen and Loeve, from which `fit` starts it, is the linear one of least squared error.
    """

    whole_latents = True

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        out_channels: int = 3,
        num_class_embeds: int = 10,
        latent_dim: int = 16 * 192,
        square: int = 8,
        width: int = 32,
    ) -> None:
        super().__init__()
        if sample_size % square:
            raise ValueError(f"squares of {square} px do not fill {sample_size} px images")
        self.squares_in_a_row = sample_size // square
        chunk_dim, rest = divmod(latent_dim, self.squares_in_a_row**2)
        if rest:
            raise ValueError(f"latent_dim {latent_dim} is not a multiple of the {self.squares_in_a_row**2} squares")
        if chunk_dim > out_channels * square**2:
            raise ValueError(f"a square of {square} px has {out_channels * square**2} numbers, not {chunk_dim}")
        self.transform = nn.ConvTranspose2d(chunk_dim, out_channels, square, stride=square)
        self.mend_in = nn.Conv2d(out_channels, width, 3, padding=1)
        self.class_embedding = nn.Embedding(num_class_embeds, width)
        self.mend = nn.Conv2d(width, width, 3, padding=1)
        self.mend_out = nn.Conv2d(width, out_channels, 3, padding=1)
        for weight in (*self.class_embedding.parameters(), *self.mend_out.parameters()):
            nn.init.zeros_(weight)  # it begins as the transform alone

    def forward(self, latents: Float[Tensor, "n latent_dim"], labels: Int64[Tensor, " n"]) -> Float[Tensor, "n c s s"]:
        row = self.squares_in_a_row
        images = self.transform(latents.view(len(latents), -1, row, row))
        return (images + self.through(self._mended, images, labels)).clamp(-1, 1)

    def _mended(self, images: Tensor, labels: Tensor) -> Tensor:
        """What convolutions add."""
        h = F.relu(self.mend_in(images) + self.class_embedding(labels)[:, :, None, None])
        return self.mend_out(F.relu(self.mend(h)))

    @torch.no_grad()
    def fit(self, squares: Float[Tensor, "n c t t"], step: float) -> Float[Tensor, "n numbers"]:
        """Makes the transform that of Karhunen and Loeve for these squares; their numbers under it, not yet rounded.

        Args:
            squares: in [-1, 1], on the CPU.
            step: by which an image changes where a number changes by 1, as the norm of the difference.
        """
        rows = squares.flatten(1).double()
        mean = rows.view(len(rows), squares.shape[1], -1).mean((0, 2))  # of a channel: a convolution has no other bias
        centered = rows - mean.repeat_interleave(squares[0, 0].numel())
        directions = torch.linalg.eigh(centered.T @ centered).eigenvectors.flip(1)[:, : self.transform.in_channels]
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        directions = directions * largest.sign()  # the same on any machine
        self.transform.weight.copy_((step * directions.T).view_as(self.transform.weight))
        self.transform.get_parameter("bias").copy_(mean)
        return (centered @ directions / step).float()
