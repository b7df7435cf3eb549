# SPDX-License-Identifier: Apache-2.0
# R1D_CUDA=AUTO|ON|OFF -> R1D_HAVE_CUDA. AUTO builds without CUDA, and says so, when no toolkit is found.
set(R1D_HAVE_CUDA OFF)
set(R1D_CUDA_ARCHITECTURES 90a CACHE STRING "Compute capabilities the kernels are built for, a list: 80;89;90a")
if(NOT R1D_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "R1D_CUDA is '${R1D_CUDA}'; expected AUTO, ON or OFF")
endif()
if(NOT R1D_CUDA STREQUAL "OFF")
  find_package(CUDAToolkit QUIET)
  if(CUDAToolkit_FOUND)
    set(R1D_HAVE_CUDA ON)
    message(STATUS "r1d: CUDA toolkit ${CUDAToolkit_VERSION}, kernels for sm_${R1D_CUDA_ARCHITECTURES}")
  elseif(R1D_CUDA STREQUAL "ON")
    message(FATAL_ERROR "R1D_CUDA=ON but no CUDA toolkit was found; set CUDAToolkit_ROOT, or use R1D_CUDA=OFF")
  else()
    message(STATUS "r1d: no CUDA toolkit found; building for the CPU alone (R1D_CUDA=ON to insist)")
  endif()
endif()

if(R1D_HAVE_CUDA)
  # Machine code alone, no PTX: nothing is compiled when the daemon starts.
  list(TRANSFORM R1D_CUDA_ARCHITECTURES APPEND -real OUTPUT_VARIABLE CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE} CACHE FILEPATH "nvcc")
  if(CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
  endif()
  # CMake's own would be -O2 -g; kernels want -O3, and line numbers in a profile instead of host debug information.
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG" CACHE STRING "")
  set(CMAKE_CUDA_FLAGS_RELWITHDEBINFO "-O3 -lineinfo -DNDEBUG" CACHE STRING "")
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    # Debian 12's CMake 3.25 does not know that nvcc has had C++20 since 12.0.
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
endif()

# r1d_nccl(TARGET): compiles NCCL's calls in when its header is found (libnccl-dev of NVIDIA's repository, a toolkit that
# holds it, or -DR1D_NCCL_INCLUDE=DIR, e.g. of the Python package nvidia-nccl-cu13). The library is loaded at run time, so
# that a host without it serves one GPU.
function(r1d_nccl target)
  find_path(R1D_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS} DOC "Folder of nccl.h; empty: one GPU a process")
  if(R1D_NCCL_INCLUDE)
    message(STATUS "r1d: NCCL's header in ${R1D_NCCL_INCLUDE}")
    target_compile_definitions(${target} PRIVATE R1D_HAVE_NCCL)
    target_include_directories(${target} SYSTEM PRIVATE ${R1D_NCCL_INCLUDE})
    target_link_libraries(${target} PRIVATE ${CMAKE_DL_LIBS})
  else()
    message(STATUS "r1d: no nccl.h found; engine.world_size on GPUs is 1 in this build (install libnccl-dev)")
  endif()
endfunction()

# What every CUDA target is compiled with.
function(r1d_cuda_options target)
  set_target_properties(${target} PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -Xcompiler=-Wall,-Wextra $<$<BOOL:${R1D_WERROR}>:-Werror=all-warnings>>
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra $<$<BOOL:${R1D_WERROR}>:-Werror>>)
  if(NOT R1D_CUDA_ARCHITECTURES STREQUAL "90a")
    # Helpers of what exists on sm_90a alone are unused elsewhere.
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-diag-suppress=177>)
  endif()
endfunction()

# r1d_kernels: every .cu (and host .cc) below kernels/, as one static library.
function(r1d_kernels)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*.cu ${CMAKE_SOURCE_DIR}/kernels/*.cc)
  add_library(r1d_kernels STATIC ${sources})
  target_include_directories(r1d_kernels PUBLIC ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/include)
  target_link_libraries(r1d_kernels PUBLIC CUDA::cudart_static)
  r1d_cuda_options(r1d_kernels)
endfunction()
