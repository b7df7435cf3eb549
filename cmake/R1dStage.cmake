# SPDX-License-Identifier: Apache-2.0
# r1d_stage(NAME LINK public libs... PRIVATE private libs...): one static library per stage of the
# way of a request, from every .cc below src/NAME; those below src/NAME/cuda only with a CUDA toolkit.
function(r1d_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wnon-virtual-dtor $<$<BOOL:${R1D_WERROR}>:-Werror>)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC 12 sees overlapping copies in inlined std::string concatenation (GCC bug 105651).
    target_compile_options(${target} PRIVATE -Wno-restrict)
  elseif(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
    # GCC 13 sees a copy of no elements past a buffer in fmt 9's inlined arithmetic of doubles.
    target_compile_options(${target} PRIVATE -Wno-array-bounds)
  endif()
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
    target_compile_options(${target} PRIVATE -Wthread-safety)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_UNITY_BUILD)
    # An unnamed namespace in an included file may be seen by others; here it is not.
    target_compile_options(${target} PRIVATE -Wno-subobject-linkage)
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND R1D_SANITIZE MATCHES thread)
    # GCC warns that ThreadSanitizer does not model the fences in Asio's headers.
    target_compile_options(${target} PRIVATE -Wno-tsan)
  endif()
  if(R1D_SANITIZE)
    target_compile_definitions(${target} PRIVATE R1D_SANITIZED)
    target_compile_options(${target} PRIVATE -fsanitize=${R1D_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${R1D_SANITIZE})
    if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
      target_compile_options(${target} PRIVATE -fsanitize-ignorelist=${CMAKE_SOURCE_DIR}/tests/ubsan.ignore)
    endif()
  endif()
  if(R1D_FUZZ)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()

# The sanitized presets compile eight files of a target as one (CMAKE_UNITY_BUILD): their headers are parsed and their
# templates made once, which is half of the time. Names in unnamed namespaces therefore differ within a stage, but in
# the targets named here: several instruction sets, generated code, tests of what r1d::testing hides from GoogleTest.
function(r1d_single_files)
  set_target_properties(${ARGN} PROPERTIES UNITY_BUILD OFF)
endfunction()

function(r1d_stage name)
  cmake_parse_arguments(STAGE "" "" "LINK;PRIVATE" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cc)
  if(NOT R1D_HAVE_CUDA)
    list(FILTER sources EXCLUDE REGEX "/src/${name}/cuda/")
  endif()
  add_library(r1d_${name} STATIC ${sources})
  target_include_directories(r1d_${name} PUBLIC ${CMAKE_SOURCE_DIR}/include PRIVATE ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(r1d_${name} PUBLIC ${STAGE_LINK} PRIVATE ${STAGE_PRIVATE})
  r1d_compile_options(r1d_${name})
endfunction()
