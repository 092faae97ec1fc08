# A Hugging Face BERT folder for the examples: sets DROPPEFT_MODEL_DIR, unless it is set already (in
# the cache or the environment).
find_path(DROPPEFT_MODEL_DIR model.safetensors HINTS ENV DROPPEFT_MODEL_DIR NO_DEFAULT_PATH
          DOC "Folder with config.json, model.safetensors and vocab.txt of a BERT")
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(MiniLM REQUIRED_VARS DROPPEFT_MODEL_DIR)
mark_as_advanced(CLEAR DROPPEFT_MODEL_DIR)
