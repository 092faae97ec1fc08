# droppeft::cuda = droppeft::droppeft + register.cu, compiled into the program that links it. Used
# by the project itself and by the installed package; droppeft_include is the folder of the headers.
get_property(droppeft_languages GLOBAL PROPERTY ENABLED_LANGUAGES)
if(NOT "CUDA" IN_LIST droppeft_languages)
  message(FATAL_ERROR
    "droppeft::cuda holds a .cu file, and CMake leaves .cu files out without a word where CUDA is "
    "not enabled. Write project(... LANGUAGES CXX CUDA) or enable_language(CUDA) before droppeft.")
endif()

if(NOT TARGET droppeft::cuda)
  add_library(droppeft::cuda INTERFACE IMPORTED GLOBAL)
  target_sources(droppeft::cuda INTERFACE "${droppeft_include}/droppeft/kernels/cuda/register.cu")
  target_link_libraries(droppeft::cuda INTERFACE droppeft::droppeft)
  # cuda_std_20 would be the way to say this, but CMake 3.25 knows no such feature of nvcc.
  target_compile_options(droppeft::cuda INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
endif()
