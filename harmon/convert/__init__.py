"""Every form that a trained model is kept in, read as one thing and written as another.

`harmon.trained.open_checkpoint` reads any form into `contents.Contents`; `released.write_released` and
`folder.write_folder` write it. Tensors stay on disk until they are written, shard by shard.
"""
