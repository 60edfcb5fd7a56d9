"""What a Hugging Face folder's own code adds to the model: classes that Transformers' Auto classes load.

`harmon.convert.code` copies these modules, and every module of ours that they need, into the folder.
"""
