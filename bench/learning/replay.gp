# Time to the target of fixed configurations and of choosers, replayed and live, a point for each seed:
# gnuplot -e "data='replay.csv'; image='replay.png'" bench/learning/replay.gp
set terminal pngcairo size 1200,520 font 'sans,11'
set output image
sets = system("awk -F, 'NR > 1 && !seen[$1]++ {print $1}' ".data)
# Place and name of each method; the name is told once.
rows(set, kind) = "< awk -F, -v s=".set." -v k='".kind."' '$1 == s {name = ($3 in place) ? \"\" : $3; if (name != \"\") place[$3] = count++; if ($4 == k) print place[$3] \",\" $5 \",\" name}' ".data
set datafile separator comma
set multiplot layout 1,words(sets)
set border 3
set tics nomirror
set xtics rotate by 40 right
set grid ytics lc '#dddddd'
set ylabel 'time to the target / whole time of fedlora'
set yrange [0:1.1]
set offsets 0.5,0.5,0,0
set key top left
do for [each in sets] {
  set title each
  plot rows(each, 'fixed') using 1:2:xtic(3) with points pt 7 ps 1.2 lc '#7f7f7f' title 'fixed', \
       rows(each, 'replayed') using 1:2:xtic(3) with points pt 5 ps 1.2 lc '#d1495b' title 'chooser, mean of replays', \
       rows(each, 'live') using ($1 + 0.15):2:xtic(3) with points pt 9 ps 1.6 lc '#00798c' title 'chooser, live'
  unset ylabel
}
unset multiplot
