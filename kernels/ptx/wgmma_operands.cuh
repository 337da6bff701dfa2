// The operand lists of wgmma, one for each number of accumulators that a thread holds (N / 2).
#pragma once

// "%t0, ..., %t9": the ten operands with the tens digit t.
#define WGMMA_T10(t) \
  "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9"
#define WGMMA_T4 "%0,%1,%2,%3"
#define WGMMA_T8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define WGMMA_T12 WGMMA_T10() ",%10,%11"
#define WGMMA_T16 WGMMA_T10() ",%10,%11,%12,%13,%14,%15"
#define WGMMA_T20 WGMMA_T10() "," WGMMA_T10(1)
#define WGMMA_T24 WGMMA_T10() "," WGMMA_T10(1) ",%20,%21,%22,%23"
#define WGMMA_T28 WGMMA_T10() "," WGMMA_T10(1) ",%20,%21,%22,%23,%24,%25,%26,%27"
#define WGMMA_T32 WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) ",%30,%31"
#define WGMMA_T36 WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) ",%30,%31,%32,%33,%34,%35"
#define WGMMA_T40 WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3)
#define WGMMA_T44 WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) ",%40,%41,%42,%43"
#define WGMMA_T48 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) ",%40,%41,%42,%43,%44,%45,%46,%47"
#define WGMMA_T52 WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) ",%50,%51"
#define WGMMA_T56 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) ",%50,%51,%52,%53,%54,%55"
#define WGMMA_T60 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5)
#define WGMMA_T64 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) \
  ",%60,%61,%62,%63"
#define WGMMA_T68 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) \
  ",%60,%61,%62,%63,%64,%65,%66,%67"
#define WGMMA_T72 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) ",%70,%71"
#define WGMMA_T76 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) ",%70,%71,%72,%73,%74,%75"
#define WGMMA_T80 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7)
#define WGMMA_T84 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) ",%80,%81,%82,%83"
#define WGMMA_T88 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) ",%80,%81,%82,%83,%84,%85,%86,%87"
#define WGMMA_T92 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) ",%90,%91"
#define WGMMA_T96 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) ",%90,%91,%92,%93,%94,%95"
#define WGMMA_T100 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) "," WGMMA_T10(9)
#define WGMMA_T104 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) "," WGMMA_T10(9) ",%100,%101,%102,%103"
#define WGMMA_T108 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) "," WGMMA_T10(9) ",%100,%101,%102,%103,%104,%105,%106,%107"
#define WGMMA_T112 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) "," WGMMA_T10(9) "," WGMMA_T10(10) ",%110,%111"
#define WGMMA_T116 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) "," WGMMA_T10(9) "," WGMMA_T10(10) \
  ",%110,%111,%112,%113,%114,%115"
#define WGMMA_T120 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) "," WGMMA_T10(9) "," WGMMA_T10(10) "," WGMMA_T10(11)
#define WGMMA_T124 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) "," WGMMA_T10(9) "," WGMMA_T10(10) "," WGMMA_T10(11) \
  ",%120,%121,%122,%123"
#define WGMMA_T128 \
  WGMMA_T10() "," WGMMA_T10(1) "," WGMMA_T10(2) "," WGMMA_T10(3) "," WGMMA_T10(4) "," WGMMA_T10(5) "," \
  WGMMA_T10(6) "," WGMMA_T10(7) "," WGMMA_T10(8) "," WGMMA_T10(9) "," WGMMA_T10(10) "," WGMMA_T10(11) \
  ",%120,%121,%122,%123,%124,%125,%126,%127"

// The accumulators from d[i] on, with a constraint.
#define WGMMA_D4(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define WGMMA_D16(c, i) WGMMA_D4(c, i), WGMMA_D4(c, i + 4), WGMMA_D4(c, i + 8), WGMMA_D4(c, i + 12)
#define WGMMA_D64(c, i) WGMMA_D16(c, i), WGMMA_D16(c, i + 16), WGMMA_D16(c, i + 32), WGMMA_D16(c, i + 48)
#define WGMMA_D8(c, i) WGMMA_D4(c, i), WGMMA_D4(c, i + 4)
#define WGMMA_D12(c, i) WGMMA_D4(c, i), WGMMA_D4(c, i + 4), WGMMA_D4(c, i + 8)
#define WGMMA_D20(c, i) WGMMA_D16(c, i), WGMMA_D4(c, i + 16)
#define WGMMA_D24(c, i) WGMMA_D16(c, i), WGMMA_D4(c, i + 16), WGMMA_D4(c, i + 20)
#define WGMMA_D28(c, i) WGMMA_D16(c, i), WGMMA_D4(c, i + 16), WGMMA_D4(c, i + 20), WGMMA_D4(c, i + 24)
#define WGMMA_D32(c, i) WGMMA_D16(c, i), WGMMA_D16(c, i + 16)
#define WGMMA_D36(c, i) WGMMA_D16(c, i), WGMMA_D16(c, i + 16), WGMMA_D4(c, i + 32)
#define WGMMA_D40(c, i) WGMMA_D16(c, i), WGMMA_D16(c, i + 16), WGMMA_D4(c, i + 32), WGMMA_D4(c, i + 36)
#define WGMMA_D44(c, i) \
  WGMMA_D16(c, i), WGMMA_D16(c, i + 16), WGMMA_D4(c, i + 32), WGMMA_D4(c, i + 36), WGMMA_D4(c, i + 40)
#define WGMMA_D48(c, i) WGMMA_D16(c, i), WGMMA_D16(c, i + 16), WGMMA_D16(c, i + 32)
#define WGMMA_D52(c, i) WGMMA_D16(c, i), WGMMA_D16(c, i + 16), WGMMA_D16(c, i + 32), WGMMA_D4(c, i + 48)
#define WGMMA_D56(c, i) \
  WGMMA_D16(c, i), WGMMA_D16(c, i + 16), WGMMA_D16(c, i + 32), WGMMA_D4(c, i + 48), WGMMA_D4(c, i + 52)
#define WGMMA_D60(c, i) \
  WGMMA_D16(c, i), WGMMA_D16(c, i + 16), WGMMA_D16(c, i + 32), WGMMA_D4(c, i + 48), WGMMA_D4(c, i + 52), \
  WGMMA_D4(c, i + 56)
#define WGMMA_D68(c, i) WGMMA_D64(c, i), WGMMA_D4(c, i + 64)
#define WGMMA_D72(c, i) WGMMA_D64(c, i), WGMMA_D4(c, i + 64), WGMMA_D4(c, i + 68)
#define WGMMA_D76(c, i) WGMMA_D64(c, i), WGMMA_D4(c, i + 64), WGMMA_D4(c, i + 68), WGMMA_D4(c, i + 72)
#define WGMMA_D80(c, i) WGMMA_D64(c, i), WGMMA_D16(c, i + 64)
#define WGMMA_D84(c, i) WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D4(c, i + 80)
#define WGMMA_D88(c, i) WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D4(c, i + 80), WGMMA_D4(c, i + 84)
#define WGMMA_D92(c, i) \
  WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D4(c, i + 80), WGMMA_D4(c, i + 84), WGMMA_D4(c, i + 88)
#define WGMMA_D96(c, i) WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D16(c, i + 80)
#define WGMMA_D100(c, i) WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D16(c, i + 80), WGMMA_D4(c, i + 96)
#define WGMMA_D104(c, i) \
  WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D16(c, i + 80), WGMMA_D4(c, i + 96), WGMMA_D4(c, i + 100)
#define WGMMA_D108(c, i) \
  WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D16(c, i + 80), WGMMA_D4(c, i + 96), WGMMA_D4(c, i + 100), \
  WGMMA_D4(c, i + 104)
#define WGMMA_D112(c, i) WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D16(c, i + 80), WGMMA_D16(c, i + 96)
#define WGMMA_D116(c, i) \
  WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D16(c, i + 80), WGMMA_D16(c, i + 96), WGMMA_D4(c, i + 112)
#define WGMMA_D120(c, i) \
  WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D16(c, i + 80), WGMMA_D16(c, i + 96), WGMMA_D4(c, i + 112), \
  WGMMA_D4(c, i + 116)
#define WGMMA_D124(c, i) \
  WGMMA_D64(c, i), WGMMA_D16(c, i + 64), WGMMA_D16(c, i + 80), WGMMA_D16(c, i + 96), WGMMA_D4(c, i + 112), \
  WGMMA_D4(c, i + 116), WGMMA_D4(c, i + 120)
#define WGMMA_D128(c, i) WGMMA_D64(c, i), WGMMA_D64(c, i + 64)

// N, the number of accumulators, and the numbers of the operands that follow them.
#define WGMMA_SHAPES(SHAPE)                 \
  SHAPE(8, 4, 4, 5, 6, 7, 8, 9) \
  SHAPE(16, 8, 8, 9, 10, 11, 12, 13) \
  SHAPE(24, 12, 12, 13, 14, 15, 16, 17) \
  SHAPE(32, 16, 16, 17, 18, 19, 20, 21) \
  SHAPE(40, 20, 20, 21, 22, 23, 24, 25) \
  SHAPE(48, 24, 24, 25, 26, 27, 28, 29) \
  SHAPE(56, 28, 28, 29, 30, 31, 32, 33) \
  SHAPE(64, 32, 32, 33, 34, 35, 36, 37) \
  SHAPE(72, 36, 36, 37, 38, 39, 40, 41) \
  SHAPE(80, 40, 40, 41, 42, 43, 44, 45) \
  SHAPE(88, 44, 44, 45, 46, 47, 48, 49) \
  SHAPE(96, 48, 48, 49, 50, 51, 52, 53) \
  SHAPE(104, 52, 52, 53, 54, 55, 56, 57) \
  SHAPE(112, 56, 56, 57, 58, 59, 60, 61) \
  SHAPE(120, 60, 60, 61, 62, 63, 64, 65) \
  SHAPE(128, 64, 64, 65, 66, 67, 68, 69) \
  SHAPE(136, 68, 68, 69, 70, 71, 72, 73) \
  SHAPE(144, 72, 72, 73, 74, 75, 76, 77) \
  SHAPE(152, 76, 76, 77, 78, 79, 80, 81) \
  SHAPE(160, 80, 80, 81, 82, 83, 84, 85) \
  SHAPE(168, 84, 84, 85, 86, 87, 88, 89) \
  SHAPE(176, 88, 88, 89, 90, 91, 92, 93) \
  SHAPE(184, 92, 92, 93, 94, 95, 96, 97) \
  SHAPE(192, 96, 96, 97, 98, 99, 100, 101) \
  SHAPE(200, 100, 100, 101, 102, 103, 104, 105) \
  SHAPE(208, 104, 104, 105, 106, 107, 108, 109) \
  SHAPE(216, 108, 108, 109, 110, 111, 112, 113) \
  SHAPE(224, 112, 112, 113, 114, 115, 116, 117) \
  SHAPE(232, 116, 116, 117, 118, 119, 120, 121) \
  SHAPE(240, 120, 120, 121, 122, 123, 124, 125) \
  SHAPE(248, 124, 124, 125, 126, 127, 128, 129) \
  SHAPE(256, 128, 128, 129, 130, 131, 132, 133)

#define WGMMA_SHAPES_S8(SHAPE)              \
  SHAPE(8, 4, 4, 5, 6, 7, 8, 9) \
  SHAPE(16, 8, 8, 9, 10, 11, 12, 13) \
  SHAPE(24, 12, 12, 13, 14, 15, 16, 17) \
  SHAPE(32, 16, 16, 17, 18, 19, 20, 21) \
  SHAPE(48, 24, 24, 25, 26, 27, 28, 29) \
  SHAPE(64, 32, 32, 33, 34, 35, 36, 37) \
  SHAPE(80, 40, 40, 41, 42, 43, 44, 45) \
  SHAPE(96, 48, 48, 49, 50, 51, 52, 53) \
  SHAPE(112, 56, 56, 57, 58, 59, 60, 61) \
  SHAPE(128, 64, 64, 65, 66, 67, 68, 69) \
  SHAPE(144, 72, 72, 73, 74, 75, 76, 77) \
  SHAPE(160, 80, 80, 81, 82, 83, 84, 85) \
  SHAPE(176, 88, 88, 89, 90, 91, 92, 93) \
  SHAPE(192, 96, 96, 97, 98, 99, 100, 101) \
  SHAPE(208, 104, 104, 105, 106, 107, 108, 109) \
  SHAPE(224, 112, 112, 113, 114, 115, 116, 117) \
  SHAPE(240, 120, 120, 121, 122, 123, 124, 125) \
  SHAPE(256, 128, 128, 129, 130, 131, 132, 133)
