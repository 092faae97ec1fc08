# The CPU part of the LibTorch that lies beside this file: what it needs of CUDA is two small
# libraries that lie here too, so that no toolkit and no GPU is asked for. Defines what LibTorch's
# own configuration defines.
get_filename_component(TORCH_INSTALL_PREFIX "${CMAKE_CURRENT_LIST_DIR}/torch" ABSOLUTE)
set(TORCH_INCLUDE_DIRS "${TORCH_INSTALL_PREFIX}/include"
                       "${TORCH_INSTALL_PREFIX}/include/torch/csrc/api/include")
set(TORCH_LIBRARIES torch)
set(TORCH_CXX_FLAGS "")

if(NOT TARGET torch)
  foreach(part IN ITEMS c10 torch_cpu)
    add_library(${part} SHARED IMPORTED)
    set_target_properties(${part} PROPERTIES
      IMPORTED_LOCATION "${TORCH_INSTALL_PREFIX}/lib/lib${part}.so")
  endforeach()
  add_library(torch INTERFACE IMPORTED)
  target_include_directories(torch INTERFACE ${TORCH_INCLUDE_DIRS})
  target_link_libraries(torch INTERFACE torch_cpu c10)
endif()
